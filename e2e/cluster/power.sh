#!/usr/bin/env bash
# Cuts a node's power, or gives it back; its disk stays. The control plane and all volumes are on node 1.
#
#   e2e/cluster/power.sh off|on NODE
# shellcheck source=SCRIPTDIR/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
need_root
case ${1:-}/${2:-} in
off/[1-9])
    node_kill "$2"
    wait_for 30 "the end of node $2" node_dead "$2"
    ;;
on/[1-9]) exec "$here/up.sh" ;;
*) fail "usage: power.sh off|on NODE" ;;
esac
