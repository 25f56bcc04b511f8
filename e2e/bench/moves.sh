#!/usr/bin/env bash
# Measures moves on this machine, over embedded shards and over etcds: how long writers of a moving range wait, what other
# ranges notice, how fast data are moved, and how much is moved when a shard is added and removed again. The load is
# e2e/workload, which also judges that nothing went wrong. Prints Markdown. About six minutes.
#
#   e2e/bench/moves.sh [MOVES] [MIB]     MOVES under load with each engine (default 500), MIB moved at once (default 128)
#
# SHARDED_ETCD: the program (default target/release/sharded-etcd, built if it is not there). BENCH_DIR: where the data go.
# ENGINES: which (default "embedded etcd"). AT_ONCE: how many moves at once (default 8; the spec's own default is 1).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
moves=${1:-500} mib=${2:-128} at_once=${AT_ONCE:-8}

. e2e/bench/lib.sh moves 23880

load() { # FILE PREFIXES: begins the load; ended by `judge`
    rm -f "$work/stop"
    workload run --quiet --endpoints "$endpoint" --duration 1h --until-file "$work/stop" --report "$1" \
        --writers 8 --rate 100 --watchers 3 --prefixes "$2" --lock-prefix /locks/ >"$work/judge" 2>&1 &
    loading=$!
}
judge() {
    touch "$work/stop"
    wait "$loading" || { cat "$work/judge" >&2; exit 1; }
}
# What the report says of latencies, in one line.
latencies() { tr -d ' \n' <"$1" | sed 's/.*"latency_millis":{\([^}]*\)}.*/\1/; s/"//g; s/,/, /g; s/:/ /g'; }

# Figures of a file with one number a line: count, p50, p99, highest.
figures() {
    sort -n "$1" | awk '{ v[NR] = $1 } END {
        if (NR == 0) { print "0 | | | "; exit }
        p50 = int(NR * 0.5); p99 = int(NR * 0.99)
        printf "%d | %s | %s | %s", NR, v[p50 < NR ? p50 + 1 : NR], v[p99 < NR ? p99 + 1 : NR], v[NR] }'
}
stalls() { sed 's/\x1b\[[0-9;]*m//g' "$work/log" | grep -a -o 'move is over.*' | grep -a 'failure=None' | grep -a -o 'stall_ms=Some([0-9]*)' | grep -o '[0-9]*'; }

# More than may move at once, as some of them wait for the next round of the shard manager.
prefixes=(/m{10..25}/)
# Moves each prefix from shard to shard, all of them side by side, until there were enough moves.
move_all() { # COUNT
    local p pids=()
    for p in "${prefixes[@]}"; do
        (
            # One more, as the first may find its range there already.
            for n in $(seq $((1 + ($1 + ${#prefixes[@]} - 1) / ${#prefixes[@]}))); do
                "$SHARDED_ETCD" move --prefix "$p" --to "shard-$((n % 3))" --endpoint "$endpoint" >>"$work/moved" 2>&1 || exit 1
            done
        ) &
        pids+=($!)
    done
    for p in "${pids[@]}"; do wait "$p" || { tail -3 "$work/moved" >&2; exit 1; }; done
}

joined=$(IFS=,; echo "${prefixes[*]}")
machine
: >"$work/speeds"
: >"$work/spread"
echo
echo "Milliseconds from the close of a moving range to its flip, under load, $at_once moves at once:"
echo
echo "| shards | moves | p50 | p99 | longest | given up | seconds |"
echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
for engine in ${ENGINES:-embedded etcd}; do
    spec <<<"shards: 3
keyspace: {presplit: [$(for p in "${prefixes[@]}" /m3/; do printf '%s, ' "$p"; done | sed 's/, $//')]}
rebalance: {mode: Manual, maxConcurrentMoves: $at_once}"
    start "$engine"
    said "$engine: load without moves"
    load "$work/still-$engine.json" "$joined,/stays/"
    sleep 10
    judge
    # Its directories have the names of the next one's.
    etcdctl --endpoints "$endpoint" del "" --prefix >/dev/null
    load "$work/moving-$engine.json" "$joined,/stays/"
    sleep 2
    : >"$work/log"
    said "$engine: $moves moves"
    begun=$SECONDS
    move_all "$moves"
    took=$((SECONDS - begun))
    judge
    stalls >"$work/stalls" || true
    echo "| $engine | $(figures "$work/stalls") | $(metric moves_aborted_total) | $took |"

    said "$engine: one range of $mib MiB"
    # One range of MIB, moved there and back, with nothing else to do.
    workload seed --endpoints "$endpoint" --prefix /big/ --keys $((mib * 256)) --dirs 16 --value-bytes 4096 --state "$work/seed" \
        --parallel 32 >/dev/null
    for to in 1 2; do
        before=$(metric moves_bytes_total)
        : >"$work/log"
        "$SHARDED_ETCD" move --prefix /big/ --to "shard-$to" --wait 10m --endpoint "$endpoint" >/dev/null
        seconds=$(sed 's/\x1b\[[0-9;]*m//g' "$work/log" | awk '
            function at(stamp, t) { split(stamp, t, /[T:Z]/); return t[2] * 3600 + t[3] * 60 + t[4] }
            /step="open"/ { open = at($1) } /step="close"/ { close_ = at($1) } /step="flip"/ { flip = at($1) }
            END { printf "%.2f", flip - open }')
        echo "| $engine | $to | $mib | $seconds | $(awk -v b="$(($(metric moves_bytes_total) - before))" -v s="$seconds" \
            'BEGIN { printf "%.0f", b / 1048576 / (s > 0 ? s : 1) }') |" >>"$work/speeds"
    done
    workload verify-seed --endpoints "$endpoint" --prefix /big/ --state "$work/seed" >/dev/null

    said "$engine: 3, 4, 3 shards"
    # A shard more, and one fewer again.
    spec <<<"shards: 3"
    start "$engine"
    workload seed --endpoints "$endpoint" --prefix /seed/ --keys 24000 --dirs 240 --value-bytes 512 --state "$work/seed" >/dev/null
    settled() { # SHARDS: waits 40 s at most, and says if that was not enough
        for _ in $(seq 60); do
            [ "$(status | jq -r --argjson n "$1" '((.topology | length) == $n) and all(.topology[]; .phase == "Serving")
                and (.moves | length) == 0 and (any(.conditions[]; .type == "Reconciling" and .status == "True") | not)')" = true ] && return
            # A shard that leaves waits for the compaction of the history that only it has.
            etcdctl --endpoints "$endpoint" compaction \
                "$(etcdctl --endpoints "$endpoint" get x -w json | jq .header.revision)" >/dev/null 2>&1 || true
            sleep 0.5
        done
        echo ", not settled yet"
    }
    sleep 3
    settled 3 >/dev/null
    for shards in 4 3; do
        before=$(metric moves_keys_total)
        spec <<<"shards: $shards"
        sleep 2
        late=$(settled "$shards")
        moved=$(($(metric moves_keys_total) - before))
        echo "| $engine | $((7 - shards)) → $shards$late | $moved | 6000 | $(awk -v m="$moved" 'BEGIN { printf "%.2f", m / 6000 }') |" >>"$work/spread"
    done
    workload verify-seed --endpoints "$endpoint" --prefix /seed/ --state "$work/seed" >/dev/null
    stop
done
echo
echo "Latency of all clients of that load in milliseconds, with and without moves (one prefix in seventeen stays where it is):"
echo
for engine in ${ENGINES:-embedded etcd}; do
    echo "- $engine, nothing moves: $(latencies "$work/still-$engine.json")"
    echo "- $engine, moves without pause: $(latencies "$work/moving-$engine.json")"
done
echo
echo "One range with values of 4 KiB, from opening the destination to the flip, so with the comparison of both copies:"
echo
echo "| shards | to shard | MiB of values | seconds | MiB/s |"
echo "| --- | ---: | ---: | ---: | ---: |"
cat "$work/speeds"
echo
echo "Keys moved of 24,000 when a shard is added and removed; the ideal is the share of one shard of four:"
echo
echo "| shards | change | keys moved | ideal | ratio |"
echo "| --- | --- | ---: | ---: | ---: |"
cat "$work/spread"
