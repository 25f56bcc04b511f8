#!/usr/bin/env bash
# Starts a Kubernetes cluster on this machine: $NODES nodes (default 2), the control plane on the first. What runs is
# left alone, and what was killed is started again: a component, or a node with its disk.
#
# A node is a process with namespaces of its own. Its /run, /tmp, /var/lib and /var/log are folders in the cluster's one
# folder, so that nothing of it is anywhere else, and no cleaning is needed but to kill it. All nodes share /tmp, and
# with it the volumes, so that a pod may move with its volume.
# shellcheck source=SCRIPTDIR/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
need_root
[ -x "$bin/k8s" ] || fail "run e2e/cluster/build.sh first"
case $run/ in
/tmp/* | /run/* | /var/lib/* | /var/log/*) fail "SHARDED_ETCD_CLUSTER_DIR must not lie under /tmp, /run, /var/lib or /var/log: nodes have their own" ;;
esac
node_booted 1 || "$here/down.sh" # what an interrupted or crashed cluster has left
mkdir -p "$run" "$images"
# The kubelet sets these for the whole machine; down.sh sets them back.
[ -f "$run/sysctl" ] || sysctl vm.overcommit_memory kernel.panic kernel.panic_on_oops >"$run/sysctl"
"$here/pki.sh"

make_cgroups() { # NODE
    local folder file
    if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
        mkdir -p "/sys/fs/cgroup/$cgroup/node$1"
        for folder in "" "/$cgroup"; do
            for file in cpu cpuset io memory pids; do echo "+$file" >"/sys/fs/cgroup$folder/cgroup.subtree_control" || true; done
        done
        return
    fi
    for folder in /sys/fs/cgroup/*/; do [ "$folder" = /sys/fs/cgroup/unified/ ] || mkdir -p "$folder$cgroup/node$1"; done
    for file in mems cpus; do
        for folder in "$cgroup" "$cgroup/node$1"; do
            cat "/sys/fs/cgroup/cpuset/cpuset.$file" >"/sys/fs/cgroup/cpuset/$folder/cpuset.$file"
        done
    done
}

boot_node() {
    local n=$1 dir=$run/node$1 pid outer file
    ! node_booted "$n" || return 0
    node_kill "$n"
    wait_for 30 "the end of node $n" node_dead "$n"
    rm -rf "$dir"/{booted,run,*.pid}
    # Cgroups do not outlive a power cut; the kubelet would wait three seconds for the dead containers of each.
    drop_cgroups "node$n"
    mkdir -p "$dir"/{run,lib/e2e/cni,log} "$run/tmp/volumes"
    chmod 1777 "$run/tmp"
    setsid unshare --mount --uts --ipc --net --pid --fork --kill-child --mount-proc "$bin/pause" </dev/null >/dev/null 2>&1 &
    outer=$!
    wait_for 5 "the first process of node $n" grep -q . "/proc/$outer/task/$outer/children"
    pid=$(tr -d " " <"/proc/$outer/task/$outer/children")
    wait_for 5 "/proc of node $n" cmp -s "/proc/$pid/exe" "$bin/pause" # so everything is mounted
    node_namespace "$pid" >"$dir/namespace"
    echo "$pid" >"$dir/pid"
    make_cgroups "$n"
    in_node "$n" sh -ec '
        mount --make-rshared /
        mount --bind "$1/run" /run; mount --bind "$1/lib" /var/lib; mount --bind "$1/log" /var/log; mount --bind "$2/tmp" /tmp
        hostname "node$3"
        ip link set lo up
        sysctl -qw net.ipv4.ip_forward=1' sh "$dir" "$run" "$n"
    if [ "$n" = 1 ]; then
        in_node 1 ip link add eth0 type bridge # the network of all nodes
    else
        in_node 1 ip link del "node$n" 2>/dev/null || true
        nsenter -t "$(node_pid 1)" --net ip link add "node$n" master eth0 type veth peer name eth0 netns "$pid"
        in_node 1 ip link set "node$n" up
    fi
    in_node "$n" ip addr add "$(node_ip "$n")/24" dev eth0
    in_node "$n" ip link set eth0 up
    # A packet to a Service must have a route before iptables rewrites it.
    in_node "$n" ip route add 10.96.0.0/16 dev eth0
    for file in containerd.toml kubelet.yaml kube-proxy.yaml cni/bridge.conflist; do
        sed "s|@N@|$n|g; s|@IP@|$(node_ip "$n")|g; s|@PKI@|$pki|g; s|@CGROUP@|$cgroup|g" \
            "$here/conf/$(basename "$file")" >"$dir/lib/e2e/$file"
    done
    : >"$dir/lib/e2e/resolv.conf"
    : >"$dir/booted"
}

start_runtime() {
    start "$1" containerd containerd --config /var/lib/e2e/containerd.toml
    wait_for 20 containerd in_node "$1" ctr version
    local image
    for image in "$images"/*.tar; do in_node "$1" ctr -n k8s.io images import - <"$image" >/dev/null; done
}

start_control_plane() {
    # Its state need not survive a crash of the machine.
    start 1 etcd "$bin/etcd" --data-dir /var/lib/etcd --unsafe-no-fsync --log-level warn
    start 1 kube-apiserver "$bin/kube-apiserver" \
        --etcd-servers=http://127.0.0.1:2379 --bind-address="$(node_ip 1)" --advertise-address="$(node_ip 1)" --secure-port=6443 \
        --service-cluster-ip-range=10.96.0.0/16 --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        --default-not-ready-toleration-seconds=30 --default-unreachable-toleration-seconds=30 \
        --client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
        --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$pki/ca.crt" \
        --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
        --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy \
        --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
        --requestheader-extra-headers-prefix=X-Remote-Extra- \
        --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key"
    wait_for 60 kube-apiserver "$here/in.sh" kubectl get --raw /readyz
    # At the default client rates it takes seconds to start its controllers.
    start 1 kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$pki/controller-manager.kubeconfig" \
        --bind-address=127.0.0.1 --leader-elect=false --kube-api-qps=1000 --kube-api-burst=1000 --use-service-account-credentials=true \
        --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/sa.key" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" --node-monitor-grace-period=25s
    start 1 kube-scheduler "$bin/kube-scheduler" --kubeconfig="$pki/scheduler.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false
    start 1 volumes "$bin/volumes" --kubeconfig="$KUBECONFIG" --root=/tmp/volumes
}

start_kubelet() {
    start "$1" kubelet "$bin/kubelet" --config=/var/lib/e2e/kubelet.yaml --kubeconfig="$pki/node$1.kubeconfig" --node-ip="$(node_ip "$1")"
    start "$1" kube-proxy "$bin/kube-proxy" --config=/var/lib/e2e/kube-proxy.yaml
}

pack() { [ -f "$images/$1.tar" ] || "$here/../image/pack.sh" "$images/$1.tar" "localhost/$1:1" --entrypoint "/$1" "$bin/$1=/$1"; }
pack pause
pack coredns

for n in $(seq "$nodes"); do boot_node "$n"; done
for n in $(seq "$nodes"); do
    for m in $(seq "$nodes"); do
        [ "$n" = "$m" ] || in_node "$n" ip route replace "10.88.$m.0/24" via "$(node_ip "$m")"
    done
done
runtimes=()
for n in $(seq "$nodes"); do
    start_runtime "$n" &
    runtimes+=($!)
done
start_control_plane
for job in "${runtimes[@]}"; do wait "$job"; done
for n in $(seq "$nodes"); do start_kubelet "$n"; done
"$here/in.sh" kubectl apply -f "$here/conf/addons.yaml" >/dev/null
for n in $(seq "$nodes"); do
    wait_for 90 "node $n" "$here/in.sh" kubectl wait --for=condition=Ready "node/node$n" --timeout=1s
done
wait_for 60 "the default service account" "$here/in.sh" kubectl get serviceaccount default
# Just after a node is ready, its DNS still refuses.
for n in $(seq "$nodes"); do
    wait_for 90 "DNS on node $n" in_node "$n" timeout 0.5 busybox nslookup kubernetes.default.svc.cluster.local 10.96.0.10
done
say "$nodes nodes are up after $SECONDS s; use it with $here/in.sh COMMAND..., e.g. $here/in.sh kubectl get pods -A"
