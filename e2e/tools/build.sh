#!/usr/bin/env bash
# Builds the programs that tests and benchmarks run against, from their Go modules, once per machine.
#
#   e2e/tools/build.sh [etcd|bench|kube|cluster|workload]...     (etcd when nothing is named)
#
#   etcd      etcd, etcdctl, etcdutl; those on PATH are linked instead when they are of the same minor release
#   bench     benchmark, etcd's own load generator
#   kube      kube-apiserver, kubectl and the other components of Kubernetes, all of them links to the program k8s;
#             generate_cert (Go's own, for the keys that an API server must be given)
#   cluster   what e2e/cluster needs besides: coredns, helm, pause, volumes
#   workload  this project's Go client workload, from e2e/workload
#
# Prints the directory that holds them, and nothing else, on stdout. That is $SHARDED_ETCD_TOOLS_DIR, or
# ${XDG_CACHE_HOME:-$HOME/.cache}/sharded-etcd/bin so that all clones on a machine share one build. What is up to date
# is left alone (a stamp holds the hash of what it was built from); callers at the same time wait for one another.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${SHARDED_ETCD_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?set HOME or SHARDED_ETCD_TOOLS_DIR}/.cache}/sharded-etcd/bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)

say() { echo "e2e/tools: $*" >&2; }
fail() { say "$*"; exit 1; }

find_go() {
    command -v go && return
    [ -x /usr/local/go/bin/go ] && echo /usr/local/go/bin/go && return
    fail "go is not installed: install Go 1.26 or newer, or put etcd and etcdctl $(etcd_minor) on PATH"
}

# The release of a Go module that a go.mod pins: pinned DIR MODULE
pinned() { awk -v module="$2" '$1 == module && $2 ~ /^v/ { print substr($2, 2); exit }' "$1/go.mod"; }
etcd_minor() { pinned "$here" go.etcd.io/etcd/server/v3 | cut -d. -f1,2; }

# Hash of the files given on stdin, their names included.
hash_files() { LC_ALL=C sort | xargs -r sha256sum | sha256sum | cut -c1-32; }
sources() { (cd "$1" && find . -type f \( -name '*.go' -o -name go.mod -o -name go.sum \) -not -path './*/go.mod' | hash_files); }

# Builds one program into place atomically, so that a running one is never overwritten: compile DIR NAME PACKAGE [LDFLAGS]
compile() {
    local go
    go=$(find_go)
    say "building $2 ($3), once for this machine"
    (cd "$1" && CGO_ENABLED=0 GOWORK=off "$go" build -trimpath -ldflags "-s -w ${4:-}" -o "$bin/.new.$2" "$3") >&2 ||
        fail "building $2 failed: see above (the Go module proxy must be reachable)"
    mv -f "$bin/.new.$2" "$bin/$2"
}

# The path of PATH's etcd, etcdctl or etcdutl if it is not ours and of the minor release that is pinned.
installed() {
    local path argument=version
    path=$(command -v "$1") && path=$(readlink -f "$path") || return 1
    [ "$path" != "$(readlink -f "$bin")/$1" ] || return 1
    [ "$1" != etcd ] || argument=--version
    [[ "$("$path" "$argument" 2>/dev/null)" =~ [Vv]ersion:\ $(etcd_minor | sed 's/\./\\./')\. ]] || return 1
    echo "$path"
}

build_etcd() {
    local name path
    for name in $(programs_of etcd); do
        if path=$(installed "$name"); then
            say "using the installed $path"
            ln -sf "$path" "$bin/.new.$name" && mv -f "$bin/.new.$name" "$bin/$name"
        elif [ "$name" = etcd ]; then
            compile "$here" etcd go.etcd.io/etcd/server/v3
        else
            compile "$here" "$name" "go.etcd.io/etcd/$name/v3"
        fi
    done
}

build_bench() { compile "$here/bench" benchmark go.etcd.io/etcd/v3/tools/benchmark; }

# One program for all components shares their code, on disk and in memory; by the name it is called it knows which one to be.
build_kube() {
    local version minor v=k8s.io/component-base/version
    version=$(pinned "$here/kube" k8s.io/kubernetes)
    minor=${version#1.}
    compile "$here/kube" k8s ./cmd/k8s \
        "-X $v.gitVersion=v$version -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean"
    for name in $kube_components; do ln -sf k8s "$bin/.new.$name" && mv -f "$bin/.new.$name" "$bin/$name"; done
    compile "$here/kube" generate_cert "$("$(find_go)" env GOROOT)/src/crypto/tls/generate_cert.go"
}
kube_components="kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl"

build_cluster() {
    for name in coredns pause volumes; do compile "$here/kube" "$name" "./cmd/$name"; done
    compile "$here/kube" helm helm.sh/helm/v3/cmd/helm
}

build_workload() { compile "$here/../workload" workload .; }

# What a target's programs are made from.
stamp_of() {
    case $1 in
    etcd)
        cat "$here/go.mod" "$here/go.sum" | sha256sum
        for name in $(programs_of etcd); do installed "$name" || true; done
        ;;
    bench) cat "$here/bench/go.mod" "$here/bench/go.sum" | sha256sum ;;
    kube | cluster) sources "$here/kube" ;;
    workload) sources "$here/../workload" ;;
    esac
}
programs_of() {
    case $1 in
    etcd) echo etcd etcdctl etcdutl ;;
    bench) echo benchmark ;;
    kube) echo k8s $kube_components generate_cert ;;
    cluster) echo coredns helm pause volumes ;;
    workload) echo workload ;;
    esac
}
up_to_date() {
    local program
    for program in $(programs_of "$1"); do [ -x "$bin/$program" ] || return 1; done
    [ "$(cat "$bin/.stamp.$1" 2>/dev/null)" = "$2" ]
}

[ $# -gt 0 ] || set -- etcd
for target in "$@"; do
    case $target in
    etcd | bench | kube | cluster | workload) ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "unknown target $target: etcd, bench, kube, cluster or workload" ;;
    esac
    [ "$target" != workload ] || [ -f "$here/../workload/go.mod" ] || fail "e2e/workload is not there"
    wanted=$(stamp_of "$target")
    up_to_date "$target" "$wanted" && continue
    (
        flock 9
        if ! up_to_date "$target" "$wanted"; then
            "build_$target"
            echo "$wanted" >"$bin/.stamp.$target"
        fi
    ) 9>"$bin/.lock.$target"
done
echo "$bin"
