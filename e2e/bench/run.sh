#!/usr/bin/env bash
# Measures put and get through the endpoint beside one etcd and etcd's grpc-proxy, in one run, on this machine, with
# etcd's own benchmark tool. Prints a Markdown table: throughput as a ratio to one etcd, CPU per operation of each process.
#
#   e2e/bench/run.sh [CLIENTS] [TOTAL] [VALUE_BYTES]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
clients=${1:-100} total=${2:-60000} value=${3:-256}
conns=$((clients < 10 ? clients : 10))

tools=${SHARDED_ETCD_TOOLS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sharded-etcd/bin}
e2e/tools/build.sh etcd bench >&2
export PATH="$tools:$PATH"
: "${SHARDED_ETCD:=target/release/sharded-etcd}"
[ -x "$SHARDED_ETCD" ] || { cargo build --release --bins >&2; }

work=$(mktemp -d)
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    pids=()
}
trap 'stop; rm -rf "$work"' EXIT

port=23790
next_port() { port=$((port + 10)); }

await() { # ENDPOINT
    for _ in $(seq 200); do
        etcdctl --endpoints "$1" --command-timeout 1s endpoint health >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "nothing serves at $1" >&2
    exit 1
}

start_etcd() { # DIR PORT
    etcd --data-dir "$1" --listen-client-urls "http://127.0.0.1:$2" --advertise-client-urls "http://127.0.0.1:$2" \
        --listen-peer-urls "http://127.0.0.1:$(($2 + 1))" --initial-advertise-peer-urls "http://127.0.0.1:$(($2 + 1))" \
        --initial-cluster "default=http://127.0.0.1:$(($2 + 1))" --log-level error >>"$work/log" 2>&1 &
    pids+=($!)
}

# CPU of a process in ticks.
ticks() { awk '{ sub(/^.*\) /, ""); print $12 + $13 }' "/proc/$1/stat" 2>/dev/null || echo 0; }
hertz=$(getconf CLK_TCK)

# Every process of the case with a name for the table: NAME PID lines.
processes() {
    for pid in "${pids[@]}"; do
        echo "$(tr '\0' ' ' <"/proc/$pid/cmdline" | awk '{ n = split($1, p, "/"); print p[n] ($2 ~ /^(up|grpc-proxy)$/ ? " " $2 : "") }' | tr ' ' '_') $pid"
        for child in $(cat /proc/"$pid"/task/*/children 2>/dev/null); do
            echo "child_$(tr '\0' '\n' <"/proc/$child/cmdline" | awk '/data-dir/ { f = 1 } f { n = split($0, p, "/"); v = p[n] } /data-dir/ && /=/ { print v; exit } f && !/data-dir/ { print v; exit }') $child"
        done
    done
}

declare -A reference
measure() { # CASE ENDPOINT
    local case=$1 endpoint=$2 op rate before after
    for op in put range-l range-s; do
        local args
        case $op in
            put) args=(put --key-space-size 100000 --val-size "$value" --sequential-keys --total "$total") ;;
            range-l) args=(range $'\x00\x00\x00\x00\x00\x00\x00\x07' --consistency l --total "$total") ;;
            range-s) args=(range $'\x00\x00\x00\x00\x00\x00\x00\x07' --consistency s --total "$total") ;;
        esac
        [ "$op" = put ] || args[1]=bench-key
        local names
        names=$(processes)
        before=$(while read -r _ pid; do ticks "$pid"; done <<<"$names")
        benchmark --endpoints "$endpoint" --clients "$clients" --conns "$conns" "${args[@]}" >"$work/out" 2>&1 ||
            { cat "$work/out" >&2; exit 1; }
        after=$(while read -r _ pid; do ticks "$pid"; done <<<"$names")
        rate=$(awk '/Requests\/sec/ { print $2 }' "$work/out")
        local p99
        p99=$(awk '/99% in/ { print $3 * 1000; exit }' "$work/out")
        [ -n "${reference[$op]:-}" ] || reference[$op]=$rate
        local cpu
        cpu=$(paste -d' ' <(echo "$names") <(echo "$before") <(echo "$after") |
            awk -v hz="$hertz" -v n="$total" '{ us = ($4 - $3) / hz * 1e6 / n; if (us >= 0.5) printf "%s%s %.0f", (c++ ? ", " : ""), $1, us }')
        awk -v c="$case" -v o="$op" -v r="$rate" -v ref="${reference[$op]}" -v p="$p99" -v cpu="$cpu" \
            'BEGIN { printf "| %s | %s | %.0f | %.2f | %.1f | %s |\n", c, o, r, r / ref, p, cpu }'
    done
    stop
}

seed_key() { etcdctl --endpoints "$1" put bench-key "$(head -c "$value" /dev/zero | tr '\0' x)" >/dev/null; }

echo "clients $clients, connections $conns, $total operations each, values of $value B"
echo
echo "| case | operation | per second | ratio to one etcd | p99 ms | CPU µs per operation by process |"
echo "| --- | --- | ---: | ---: | ---: | --- |"

next_port
start_etcd "$work/one" $port
await "http://127.0.0.1:$port" && seed_key "http://127.0.0.1:$port"
measure "one etcd" "http://127.0.0.1:$port"

next_port
start_etcd "$work/behind" $port
await "http://127.0.0.1:$port"
etcd grpc-proxy start --endpoints "http://127.0.0.1:$port" --listen-addr "127.0.0.1:$((port + 2))" \
    --advertise-client-url "127.0.0.1:$((port + 2))" >>"$work/log" 2>&1 &
pids+=($!)
await "http://127.0.0.1:$((port + 2))" && seed_key "http://127.0.0.1:$((port + 2))"
measure "grpc-proxy, one etcd" "http://127.0.0.1:$((port + 2))"

for engine in etcd embedded; do
    for shards in 1 3; do
        next_port
        file="$work/$engine-$shards.yaml"
        {
            echo "apiVersion: shardedetcd.io/v1alpha1"
            echo "kind: ShardedEtcd"
            echo "metadata: {name: bench}"
            echo "spec:"
            echo "  shards: $shards"
        } >"$file"
        "$SHARDED_ETCD" up -f "$file" --data-dir "$work/$engine-$shards" --engine "$engine" --listen "127.0.0.1:$port" \
            >>"$work/log" 2>&1 &
        pids+=($!)
        await "http://127.0.0.1:$port" && seed_key "http://127.0.0.1:$port"
        if [ "$shards" -gt 1 ]; then
            # Fill, and let the shard manager spread the keys before anything is measured.
            benchmark --endpoints "http://127.0.0.1:$port" --clients "$clients" --conns "$conns" put \
                --key-space-size 100000 --val-size "$value" --sequential-keys --total 100000 >/dev/null 2>&1
            for _ in $(seq 120); do
                "$SHARDED_ETCD" status --endpoint "http://127.0.0.1:$port" -o json 2>/dev/null |
                    grep -A3 '"Balanced"' | grep -q '"True"' && break
                sleep 0.5
            done
        fi
        measure "up, $shards $engine shard$([ "$shards" = 1 ] || echo s)" "http://127.0.0.1:$port"
    done
done
