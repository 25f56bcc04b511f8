#!/usr/bin/env bash
# Packs programs into an image of one layer, without a container engine.
#
#   e2e/image/pack.sh OUT.tar REFERENCE [--entrypoint PATH] [--libraries] FILE=PATH... [PATH:TARGET...]
#
# FILE goes to PATH in the image; PATH:TARGET makes a link there. Processes run as user and group 65532 in /; there are
# /tmp and /etc/passwd, and nothing else. --libraries adds the shared libraries that the files need, from this machine:
# for tests, so that a program needs no second, static build. An image to publish is packed from a static one.
#
# OUT.tar has the layout of `docker save`, which `ctr images import`, `docker load` and `skopeo copy` read, and depends on
# nothing but what goes into it.
set -euo pipefail

usage() { sed -n '4s/^# *//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[ $# -ge 3 ] || usage
out=$(realpath -m "$1") reference=$2
shift 2
entrypoint="" libraries="" items=()
while [ $# -gt 0 ]; do
    case $1 in
    --entrypoint) entrypoint="\"$2\"" && shift ;;
    --libraries) libraries=yes ;;
    *=/* | /*:*) items+=("$1") ;;
    *) usage ;;
    esac
    shift
done

work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{etc,tmp}
chmod 1777 "$root/tmp"
echo "nonroot:x:65532:65532::/:/sbin/nologin" >"$root/etc/passwd"
echo "nonroot:x:65532:" >"$root/etc/group"
add() { install -D -m 0755 "$1" "$root$2"; }
for item in "${items[@]}"; do
    case $item in
    *=/*)
        add "${item%%=*}" "${item#*=}"
        [ -z "$libraries" ] || ldd "${item%%=*}" | grep -o '/[^ ]*' | while read -r library; do add "$library" "$library"; done
        ;;
    *)
        mkdir -p "$root$(dirname "${item%%:*}")"
        ln -s "${item#*:}" "$root${item%%:*}"
        ;;
    esac
done

archive() (cd "$2" && tar --create --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --file="$1" -- *)
digest() { sha256sum "$1" | cut -d' ' -f1; }
mkdir "$work/image"
archive "$work/image/layer.tar" "$root"
printf '{"architecture":"amd64","os":"linux","config":{"User":"65532:65532","Entrypoint":[%s],"Env":["PATH=/usr/local/bin:/bin:/"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$entrypoint" "$(digest "$work/image/layer.tar")" >"$work/config"
config=$(digest "$work/config").json
mv "$work/config" "$work/image/$config"
printf '[{"Config":"%s","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$config" "$reference" >"$work/image/manifest.json"
archive "$work/out" "$work/image"
mv "$work/out" "$out"
