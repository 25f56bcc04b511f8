#!/usr/bin/env bash
# The tests on a Kubernetes cluster: `make e2e`. Arguments go to the test program, such as the name of a test.
#
# With KUBECONFIG set they run on that cluster, which has to be able to pull, or to have, three images:
#
#   E2E_IMAGE             sharded-etcd itself               (default localhost/sharded-etcd:e2e)
#   E2E_ETCD_IMAGE        etcd without its tag, v3.7.3      (default localhost/etcd)
#   E2E_WORKLOAD_IMAGE    the Go workload, etcdctl, busybox (default localhost/workload:e2e)
#
# e2e/image/build.sh packs all three. Otherwise a cluster is built for the run, which needs root, and removed again however
# it ends; KEEP=1 leaves it running. What the tests have written about failures, and the cluster's own logs, stay in
# target/e2e-logs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { echo "e2e: $*" >&2; }

logs=$PWD/target/e2e-logs
rm -rf "$logs" && mkdir -p "$logs"
# An error says what went wrong by itself.
export RUST_BACKTRACE=0
export E2E_LOGS=$logs
export E2E_IMAGE=${E2E_IMAGE:-localhost/sharded-etcd:e2e}
export E2E_ETCD_IMAGE=${E2E_ETCD_IMAGE:-localhost/etcd}
export E2E_WORKLOAD_IMAGE=${E2E_WORKLOAD_IMAGE:-localhost/workload:e2e}
# As `make test` builds, so that everything but the tests is there already.
build=(--locked --workspace --profile "${PROFILE:-ci}")

step() { # NAME COMMAND...
    local begun=$SECONDS name=$1
    shift
    "$@"
    say "$name took $((SECONDS - begun)) s"
}
build_tests() {
    ${CARGO:-cargo} build "${build[@]}" --bins
    ${CARGO:-cargo} test "${build[@]}" --features sharded-etcd-e2e/cluster --test cluster --no-run
}

if [ -n "${KUBECONFIG:-}" ]; then
    say "using the cluster of KUBECONFIG=$KUBECONFIG"
    step "building the tests" build_tests
    PATH=$(e2e/tools/build.sh etcd kube cluster):$PATH
    export PATH
else
    [ "$(id -u)" = 0 ] || {
        say "building a cluster needs root (namespaces, mounts, iptables): run make e2e as root, or set KUBECONFIG to use another cluster"
        exit 1
    }
    finish() {
        local status=$? log
        trap - EXIT INT TERM
        for log in $(. e2e/cluster/env.sh && ls -d "$run"/node*/log 2>/dev/null); do
            cp -r "$log" "$logs/$(basename "$(dirname "$log")")" 2>/dev/null || true
        done
        [ -n "${KEEP:-}" ] || e2e/cluster/down.sh || say "the cluster could not be removed: run e2e/cluster/down.sh"
        [ "$status" = 0 ] || say "FAILED; see $logs"
        exit "$status"
    }
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    step "building the tests" build_tests
    step "building Kubernetes" e2e/cluster/build.sh
    step "starting the cluster" e2e/cluster/up.sh
    step "packing the images" e2e/image/build.sh "$logs/images"
    step "loading the images" e2e/cluster/load.sh "$logs"/images/*.tar
    rm -rf "$logs/images"
    export E2E_POWER=$PWD/e2e/cluster/power.sh
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/e2e/cluster/in.sh
fi

# Two at a time; those that need the cluster for themselves wait until they have it.
step "the tests" ${CARGO:-cargo} test "${build[@]}" --features sharded-etcd-e2e/cluster --test cluster -- \
    --nocapture --test-threads="${E2E_THREADS:-2}" "$@"
