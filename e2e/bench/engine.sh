#!/usr/bin/env bash
# Measures the engine (`sharded-etcd engine`) beside etcd with default settings: same machine, same disk, one run, each
# case on one after the other. Load comes from etcd's own benchmark tool, and from the engine's example `probe` for what
# that cannot do. Prints Markdown tables; CPU is user and system time of the server process.
#
#   e2e/bench/engine.sh [KEYS] [SCALE]     KEYS of the large store (default 1000000), SCALE of the loads in percent
#
# BENCH_DIR: where the data go (default: a temporary directory); TARGET_DIR: where Cargo builds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
keys=${1:-1000000} scale=${2:-100}

tools=${SHARDED_ETCD_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sharded-etcd/bin}
e2e/tools/build.sh etcd bench >&2
export PATH="$tools:$PATH"
target=${TARGET_DIR:-${CARGO_TARGET_DIR:-target}}/release
if [ ! -x "$target/sharded-etcd" ] || [ ! -x "$target/examples/probe" ]; then
    cargo build --release -p sharded-etcd-app --bins -p sharded-etcd-engine --example probe >&2
fi
probe="$target/examples/probe"

work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/engine-bench.XXXXXX")
declare -A pid=()
stop() { # TARGET [SIGNAL]
    [ -n "${pid[$1]:-}" ] || return 0
    kill "-${2:-TERM}" "${pid[$1]}" 2>/dev/null || true
    wait "${pid[$1]}" 2>/dev/null || true
    unset "pid[$1]"
}
trap 'stop etcd; stop engine; rm -rf "$work"' EXIT

declare -A port=([etcd]=23790 [engine]=23795)
start() { # TARGET: leaves in $took_ms how long it took until it answered a read
    local url="http://127.0.0.1:${port[$1]}" peer="http://127.0.0.1:$((port[$1] + 1))"
    case $1 in
        etcd)
            etcd --data-dir "$work/etcd" --listen-client-urls "$url" --advertise-client-urls "$url" \
                --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" \
                --log-level error >>"$work/etcd.log" 2>&1 &
            ;;
        engine)
            "$target/sharded-etcd" engine --data-dir "$work/engine" --listen "127.0.0.1:${port[$1]}" \
                >>"$work/engine.log" 2>&1 &
            ;;
    esac
    pid[$1]=$!
    took_ms=$("$probe" "127.0.0.1:${port[$1]}" self await)
}
fresh() {
    for t in etcd engine; do
        stop $t
        rm -rf "${work:?}/$t"
        start $t
    done
}

hertz=$(getconf CLK_TCK)
ticks() { awk '{ sub(/^.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
resident_mib() { awk '/^VmRSS:/ { printf "%.0f", $2 / 1024 }' "/proc/$1/status"; }
written() { awk '/^write_bytes:/ { print $2 }' "/proc/$1/io"; }

# Lines of CASE, TARGET, per second, p50 ms, p99 ms, maximum ms, CPU µs per operation, bytes to disk per operation.
results="$work/results"
: >"$results"

tool() { # CASE TOTAL CLIENTS ARGUMENTS...: etcd's benchmark tool, on both
    local name=$1 total=$(($2 * scale / 100)) clients=$3 conns t before after bytes
    shift 3
    conns=$((clients < 10 ? clients : clients < 1000 ? 10 : 100))
    total=$((total < clients ? clients : total))
    for t in etcd engine; do
        before=$(ticks "${pid[$t]}") bytes=$(written "${pid[$t]}")
        if ! timeout 300 benchmark --endpoints "127.0.0.1:${port[$t]}" --clients "$clients" --conns "$conns" "$@" \
            --total "$total" >"$work/out" 2>&1; then
            cat "$work/out" >&2
            exit 1
        fi
        after=$(ticks "${pid[$t]}") bytes=$(($(written "${pid[$t]}") - bytes))
        awk -v name="$name" -v t="$t" -v cpu="$((after - before))" -v hz="$hertz" -v n="$total" -v bytes="$bytes" '
            /Requests\/sec/ { rate = $2 }
            /Slowest:/ { slowest = $2 * 1000 }
            / 50% in/ { p50 = $3 * 1000 }
            / 99% in/ { p99 = $3 * 1000 }
            END { printf "%s\t%s\t%.0f\t%.2f\t%.2f\t%.1f\t%.1f\t%.0f\n", name, t, rate, p50, p99, slowest, cpu / hz * 1e6 / n, bytes / n }
        ' "$work/out" >>"$results"
    done
}

ours() { # ARGUMENTS...: a case of `probe`, on both
    local t
    for t in etcd engine; do
        timeout 900 "$probe" "127.0.0.1:${port[$t]}" "${pid[$t]}" "$@" >"$work/out"
        awk -F '\t' -v t="$t" -v OFS='\t' '{ print $1, t, $2, $3, $4, $5, $6, "" }' "$work/out" >>"$results"
    done
}

table() { # of the results so far, which it forgets
    echo "| case | etcd /s | engine /s | ratio | etcd p99 ms | engine p99 ms | etcd CPU µs | engine CPU µs | CPU ratio |"
    echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    awk -F '\t' '
        $2 == "etcd" { if (!($1 in rate)) order[++n] = $1; rate[$1] = $3; p99[$1] = $5; cpu[$1] = $7 }
        $2 == "engine" { rate2[$1] = $3; p992[$1] = $5; cpu2[$1] = $7 }
        END {
            for (i = 1; i <= n; i++) {
                c = order[i]
                printf "| %s | %s | %s | %.2f | %s | %s | %s | %s | %.2f |\n", c, rate[c], rate2[c], rate2[c] / (rate[c] + 1e-9), p99[c], p992[c], cpu[c], cpu2[c], cpu2[c] / (cpu[c] + 1e-9)
            }
        }' "$results"
    : >"$results"
}

puts() { # VALUE_BYTES KIND FACTOR: puts with 1 to 1000 clients
    local clients total order=()
    [ "$2" != put ] || order=(--sequential-keys)
    for clients in 1 10 100 1000; do
        case $clients in 1) total=3000 ;; 10) total=20000 ;; *) total=60000 ;; esac
        tool "$2 $1 B, $clients clients" $((total / $3)) $clients "$2" --key-size 32 --val-size "$1" \
            --key-space-size 100000 "${order[@]}"
    done
}

echo "$(date +%F), $(nproc) cores, Linux $(uname -r), $(etcd --version | head -1); load average $(cut -d' ' -f1-3 /proc/loadavg)"
echo
echo "Writes into an empty store:"
echo
fresh
puts 256 put 1
puts 10240 put 6
puts 256 txn-put 1
bytes=$(awk -F '\t' '$1 ~ /^put .* (1|100) clients/ { printf "| %s | %s | %s |\n", $1, $2, $8 }' "$results")
table
echo
echo "Bytes that reach the disk per put, as the system counts them:"
echo
echo "| case | server | bytes |"
echo "| --- | --- | ---: |"
echo "$bytes"

fresh
ours fill "$keys" 256 1000
echo
echo "With $keys keys of 256 B:"
echo
for clients in 1 10 100 1000; do
    case $clients in 1) total=10000 ;; 10) total=50000 ;; *) total=100000 ;; esac
    tool "get, $clients clients" $total $clients range /registry/pods/default/pod-000000004711
    tool "get serializable, $clients clients" $total $clients range /registry/pods/default/pod-000000004711 --consistency s
done
ours range 1 $((50000 * scale / 100)) 100
ours range 1000 $((2000 * scale / 100)) 10
ours range 10000 $((300 * scale / 100)) 10
for clients in 1 100 1000; do
    tool "put over them, $clients clients" $((clients == 1 ? 3000 : 60000)) $clients put --key-size 32 --val-size 256 --key-space-size 100000
done
for clients in 1 100 1000; do
    tool "lease keep-alive, $clients clients" $((clients == 1 ? 5000 : 50000)) $clients lease-keepalive
done
for watchers in 1 100 1000 10000; do
    ours watch $watchers $((watchers < 1000 ? 1000 : 200000 / watchers))
done
table

echo
echo "| with $keys keys | etcd | engine |"
echo "| --- | ---: | ---: |"
row() { echo "| $1 | $2 | $3 |"; }
row "resident memory, MiB" "$(resident_mib "${pid[etcd]}")" "$(resident_mib "${pid[engine]}")"
disk_mib() { du -sm "$work/$1" | cut -f1; }
row "data directory, MiB" "$(disk_mib etcd)" "$(disk_mib engine)"
restart() { # ROW SIGNAL: of both, one after the other
    local t row="| $1 |"
    for t in etcd engine; do
        stop $t "$2"
        start $t
        row+=" $took_ms |"
    done
    echo "$row"
}
restart "start after SIGTERM, ms" TERM
restart "start after SIGKILL, ms" KILL
row "resident memory after that start, MiB" "$(resident_mib "${pid[etcd]}")" "$(resident_mib "${pid[engine]}")"

echo
echo "Puts by 10 clients while maintenance goes on, beside an fdatasync of another file every 5 ms:"
echo
ours stall 4 "$work" "$keys"
awk -F '\t' '
    BEGIN { print "| during | server | puts/s | p99 ms | longest ms | stalls over 50 ms | longest fdatasync ms | fdatasyncs over 50 ms |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |" }
    { split($1, name, "; "); printf "| %s | %s | %s | %s | %s | %s | %s | %s |\n", name[1], $2, $3, $5, $6, name[2], name[3], name[4] }' "$results"
