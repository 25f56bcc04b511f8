#!/usr/bin/env bash
# Gives images that e2e/image/pack.sh has made to the running nodes.
#
#   e2e/cluster/load.sh IMAGE.tar...
# shellcheck source=SCRIPTDIR/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
for folder in "$run"/node*; do
    n=${folder##*/node}
    node_booted "$n" || continue
    for image in "$@"; do in_node "$n" ctr -n k8s.io images import - <"$image" >/dev/null; done
done
