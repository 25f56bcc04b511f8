#!/usr/bin/env bash
# Installs the packages and builds the programs that the cluster needs, once for this machine.
# shellcheck source=SCRIPTDIR/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
need_root
packages=(containerd runc containernetworking-plugins iptables busybox-static iproute2 openssl util-linux procps)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    say "installing ${packages[*]}"
    {
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}"
    } >&2
fi
"$here/../tools/build.sh" etcd kube cluster workload >/dev/null
