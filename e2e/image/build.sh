#!/usr/bin/env bash
# Packs the images that the tests on a cluster run, from programs that are built: sharded-etcd.tar, etcd.tar, workload.tar.
#
#   e2e/image/build.sh FOLDER
#
# E2E_IMAGE, E2E_ETCD_IMAGE and E2E_WORKLOAD_IMAGE are their names, as e2e/run.sh says.
set -euo pipefail
folder=$(realpath -m "${1:?usage: e2e/image/build.sh FOLDER}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
profile=${PROFILE:-ci}
bin=$(e2e/tools/build.sh etcd workload)
version=v$("$bin/etcd" --version | sed -n 's/^etcd Version: //p')
program=${CARGO_TARGET_DIR:-target}/$profile/sharded-etcd
[ -x "$program" ] || { echo "e2e/image: $program is not built: run cargo build --workspace --bins --profile $profile" >&2; exit 1; }
mkdir -p "$folder"
# Half of the program are tables for debuggers, which nobody loads in a pod.
stripped=$folder/.sharded-etcd
trap 'rm -f "$stripped"' EXIT
strip --strip-debug -o "$stripped" "$program"
e2e/image/pack.sh "$folder/sharded-etcd.tar" "${E2E_IMAGE:-localhost/sharded-etcd:e2e}" \
    --libraries --entrypoint /sharded-etcd "$stripped=/sharded-etcd"
# Where the official image has them.
e2e/image/pack.sh "$folder/etcd.tar" "${E2E_ETCD_IMAGE:-localhost/etcd}:$version" \
    "$bin/etcd=/usr/local/bin/etcd" "$bin/etcdctl=/usr/local/bin/etcdctl" "$bin/etcdutl=/usr/local/bin/etcdutl"
busybox=$(command -v busybox) || { echo "e2e/image: busybox is not installed: apt-get install busybox-static" >&2; exit 1; }
e2e/image/pack.sh "$folder/workload.tar" "${E2E_WORKLOAD_IMAGE:-localhost/workload:e2e}" "$bin/workload=/bin/workload" \
    "$bin/etcdctl=/bin/etcdctl" "$busybox=/bin/busybox" /bin/sh:busybox /bin/sleep:busybox /bin/touch:busybox /bin/cat:busybox
