#!/usr/bin/env bash
# Measures a hot spot on this machine, over embedded shards and over etcds: most requests go to a few directories, which all
# lie on one shard, before the planner may move anything and after it has evened the load out. Prints Markdown. About
# eight minutes.
#
#   e2e/bench/hotspot.sh [SECONDS] [BALANCING] [CLIENTS]     measured before and after (default 30); at most between (default 150)
#
# SHARDED_ETCD: the program (default target/release/sharded-etcd, built if it is not there). BENCH_DIR: where the data go.
# ENGINES: which (default "embedded etcd").
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=${1:-30} balancing=${2:-150} clients=${3:-64}
. e2e/bench/lib.sh hotspot 23890

# The n-th of the directories gets 1/n of what the first gets. Each shard has a third of them at first, so the first shard has
# three quarters of the load, and the hottest directory a fifth.
dirs=63 keys=6300
keyspace="shards: 3
keyspace: {presplit: [/hot/dir-0021/, /hot/dir-0042/]}"
hot() { # SECONDS: one line of JSON
    workload hot --endpoints "$endpoint" --prefix /hot/ --keys "$keys" --dirs "$dirs" --zipf 1 --reads 0.5 --clients "$clients" \
        --duration "${1}s"
}
# Percent of the load by shard.
shares() {
    status | jq -r '(.load.shards // []) as $shards | ([$shards[].operations] | add // 0) as $all
        | [range(3) | "shard-\(.)" as $name
            | ([$shards[] | select(.shard == $name) | .operations] | add // 0) * 100 / ([$all, 1] | max) | round | tostring]
        | join(" / ")'
}
row() { # ENGINE WHEN RESULT SHARES
    jq -r --arg engine "$1" --arg when "$2" --arg shares "$4" '"| \($engine) | \($when) | \(.per_second | round) | \(.read_millis.p50) | "
        + "\(.read_millis.p99) | \(.write_millis.p50) | \(.write_millis.p99) | \($shares) |"' <<<"$3"
}
moves() { metric moves_done_total; }

machine
echo
echo "$clients clients, half of the requests linearizable reads and half writes of 256 B, $seconds seconds each; milliseconds:"
echo
echo "| shards | | requests a second | read p50 | p99 | write p50 | p99 | % of the load by shard |"
echo "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
: >"$work/notes"
for engine in ${ENGINES:-embedded etcd}; do
    spec <<<"$keyspace
rebalance: {mode: Paused}"
    start "$engine"
    workload seed --endpoints "$endpoint" --prefix /hot/ --keys "$keys" --dirs "$dirs" --value-bytes 256 >/dev/null
    said "$engine: a hot spot"
    # Load is a mean over the past in which a minute ago counts half: the seed has to be forgotten.
    hot "$seconds" >/dev/null
    before=$(hot "$seconds")
    row "$engine" before "$before" "$(shares)"
    said "$engine: balancing"
    spec <<<"$keyspace
rebalance: {mode: Automatic, loadTolerance: 100}"
    begun=$SECONDS last=$SECONDS done_=0
    # At most so long, and until nothing has moved for a third of that.
    while [ $((SECONDS - begun)) -lt "$balancing" ] && [ $((SECONDS - last)) -lt $((balancing / 3 + 1)) ]; do
        hot 5 >/dev/null
        now=$(moves)
        [ "$now" = "$done_" ] || { done_=$now; last=$SECONDS; }
    done
    said "$engine: after"
    after=$(hot "$seconds")
    row "$engine" after "$after" "$(shares)"
    echo "- $engine: $(moves) moves and $(metric splits_done_total) splits, the last $((last - begun)) s after the planner was let go" >>"$work/notes"
    stop
done
echo
cat "$work/notes"
