# What the benchmarks over `sharded-etcd up` have in common; to be sourced, after a `cd` to the repository's root, with the name
# of the benchmark and the port of its endpoint:
#
#   . e2e/bench/lib.sh moves 23880
#
# SHARDED_ETCD: the program (default target/release/sharded-etcd, built if it is not there). BENCH_DIR: where the data go.
# shellcheck shell=bash

tools=${SHARDED_ETCD_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sharded-etcd/bin}
e2e/tools/build.sh etcd workload >&2
export PATH="$tools:$PATH"
: "${SHARDED_ETCD:=${CARGO_TARGET_DIR:-target}/release/sharded-etcd}"
[ -x "$SHARDED_ETCD" ] || cargo build --release -p sharded-etcd-app --bins >&2

work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/$1-bench.XXXXXX")
endpoint=127.0.0.1:$2
up=
stop() {
    [ -n "$up" ] || return 0
    kill "$up" 2>/dev/null || true
    wait "$up" 2>/dev/null || true
    up=
}
trap 'stop; rm -rf "$work"' EXIT

spec() { # the lines below spec:
    printf 'apiVersion: shardedetcd.io/v1alpha1\nkind: ShardedEtcd\nmetadata: {name: bench}\nspec:\n' >"$work/new.yaml"
    sed 's/^/  /' >>"$work/new.yaml"
    mv "$work/new.yaml" "$work/bench.yaml"
}
start() { # ENGINE: an empty topology of what the file says
    stop
    rm -rf "$work/data"
    : >"$work/log"
    # What a move does step by step is logged at this level only.
    RUST_LOG=warn,sharded_etcd_manager=info "$SHARDED_ETCD" up -f "$work/bench.yaml" --data-dir "$work/data" --listen "$endpoint" --engine "$1" \
        >"$work/out" 2>>"$work/log" &
    up=$!
    for _ in $(seq 300); do
        etcdctl --endpoints "$endpoint" --command-timeout 1s endpoint health >/dev/null 2>&1 && return
        sleep 0.1
    done
    cat "$work/log" >&2
    exit 1
}
status() { "$SHARDED_ETCD" status -o json --endpoint "$endpoint"; }
metric() { curl -sf "http://$endpoint/metrics" | awk -v name="sharded_etcd_$1" '$1 == name { print $2 }'; }
said() { echo "$SECONDS s: $*" >&2; }
machine() { echo "$(date +%F), $(nproc) cores, Linux $(uname -r); load average $(cut -d' ' -f1-3 /proc/loadavg)"; }
