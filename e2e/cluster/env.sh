# shellcheck shell=bash
# Sourced by the other scripts: where things are, and how to run something inside a node.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/sharded-etcd
# Programs, shared by all clones on this machine; e2e/tools/build.sh makes them.
bin=${SHARDED_ETCD_TOOLS_DIR:-$cache/bin}
# The running cluster, one for each clone; down.sh removes it.
run=$(realpath -m "${SHARDED_ETCD_CLUSTER_DIR:-$cache/cluster/$(cksum <<<"$here" | cut -d' ' -f1)}")
export pki=$run/pki
export images=$run/images
export nodes=${NODES:-2}
cgroup=sharded-etcd-$(cksum <<<"$run" | cut -d' ' -f1)
export cgroup
export KUBECONFIG=$run/kubeconfig
# Otherwise in the user's home.
export KUBECACHEDIR=$run/cache/kube
export HELM_CACHE_HOME=$run/cache/helm HELM_CONFIG_HOME=$run/cache/helm HELM_DATA_HOME=$run/cache/helm
export PATH=$bin:$PATH

say() { echo "e2e/cluster: $*" >&2; }
fail() { say "$*"; exit 1; }
need_root() { [ "$(id -u)" = 0 ] || fail "a cluster of its own needs root (namespaces, mounts, iptables): run as root, or set KUBECONFIG to use another cluster"; }

node_ip() { echo "10.99.0.$1"; }
node_pid() { cat "$run/node$1/pid" 2>/dev/null; } # of its first process, as the host numbers it
node_namespace() { readlink "/proc/$1/ns/pid"; }
# A number may have been given to another process since: its namespace tells.
node_alive() {
    local pid
    pid=$(node_pid "$1") && [ "$(node_namespace "$pid")" = "$(cat "$run/node$1/namespace")" ]
}
node_booted() { node_alive "$1" && [ -f "$run/node$1/booted" ]; }
node_dead() { ! node_alive "$1"; }
# As a power cut: the first process dies, and the kernel kills the rest and drops mounts, interfaces and rules.
node_kill() { ! node_alive "$1" || kill -KILL "$(node_pid "$1")"; }

# Of the cluster, or of one node of it; none may have processes.
drop_cgroups() { # [NODE]
    find /sys/fs/cgroup/*/"$cgroup/${1:-}" /sys/fs/cgroup/"$cgroup/${1:-}" -depth -type d -exec rmdir {} + 2>/dev/null || true
}

# in_node N COMMAND...: runs COMMAND inside node N, seeing its processes, mounts and network.
in_node() {
    local pid
    pid=$(node_pid "$1")
    shift
    nsenter -t "$pid" --mount --uts --ipc --net --pid -- "$@"
}

# start N NAME COMMAND...: runs COMMAND in the background inside node N unless it runs already.
start() {
    local n=$1 name=$2 dir=$run/node$1
    shift 2
    [ -f "$dir/$name.pid" ] && in_node "$n" kill -0 "$(cat "$dir/$name.pid")" 2>/dev/null && return
    in_node "$n" sh -c 'd=$1 n=$2; shift 2; setsid "$@" </dev/null >>"$d/log/$n.log" 2>&1 & echo $! >"$d/$n.pid"' \
        sh "$dir" "$name" "$@"
}

# wait_for SECONDS WHAT COMMAND...: runs COMMAND again and again until it succeeds.
wait_for() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what (logs: $run/node*/log)"
        sleep 0.2
    done
}
