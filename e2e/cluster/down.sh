#!/usr/bin/env bash
# Stops the cluster and removes all its state; what build.sh made stays. Nothing happens when there is none.
# shellcheck source=SCRIPTDIR/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ -d "$run" ] || exit 0
need_root
for folder in "$run"/node*; do [ ! -d "$folder" ] || node_kill "${folder##*/node}"; done
for folder in "$run"/node*; do
    [ ! -d "$folder" ] || wait_for 30 "the end of ${folder##*/}" node_dead "${folder##*/node}"
done
drop_cgroups
# The kubelet changes them for the whole machine.
[ ! -f "$run/sysctl" ] || sysctl -qp "$run/sysctl" >/dev/null || true
rm -rf "$run"
