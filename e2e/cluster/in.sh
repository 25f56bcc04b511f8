#!/usr/bin/env bash
# Runs a command in the cluster's network, with KUBECONFIG and PATH set: it keeps the host's files and processes, and
# reaches the API server, every Service and every pod, but nothing outside.
#
#   e2e/cluster/in.sh COMMAND...
# shellcheck source=SCRIPTDIR/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
node_alive 1 || fail "the cluster is down: run e2e/cluster/up.sh"
exec nsenter -t "$(node_pid 1)" --net -- "$@"
