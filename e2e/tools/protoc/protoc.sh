#!/usr/bin/env bash
# The protoc of this workspace's build scripts (PROTOC in .cargo/config.toml): an installed one, else a small program over
# protox, so that a machine with nothing but Rust can build the tests. Only etcd-client, of the end-to-end tests, asks for it.
#
# The program is built once for a machine (some 20 s), into the folder of the other tools (see ../build.sh).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say() { echo "e2e/tools/protoc: $*" >&2; }

# etcd's files need what protoc has since 3.15; later ones number 21, 22, ….
if installed=$(command -v protoc) && [[ "$("$installed" --version 2>/dev/null)" =~ ^libprotoc\ ([0-9]+)\.([0-9]+) ]]; then
    if [ "${BASH_REMATCH[1]}" -gt 3 ] || [ "${BASH_REMATCH[1]}.${BASH_REMATCH[2]}" = 3.15 ] ||
        { [ "${BASH_REMATCH[1]}" = 3 ] && [ "${BASH_REMATCH[2]}" -gt 15 ]; }; then
        exec "$installed" "$@"
    fi
fi

bin=${SHARDED_ETCD_TOOLS_DIR:-${XDG_CACHE_HOME:-${HOME:?set HOME, SHARDED_ETCD_TOOLS_DIR or PROTOC}/.cache}/sharded-etcd/bin}
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)
wanted=$(cat "$here/Cargo.toml" "$here/Cargo.lock" "$here/src/main.rs" | cksum | tr ' ' -)
# Programs of several versions of this repository are kept beside one another.
program=$bin/.protoc-$wanted

build() (
    # Nothing of the build that this is called from, which may be for another machine, with other flags, or by Clippy.
    for name in $(compgen -e); do
        case $name in
        CARGO_HOME | CARGO_HTTP_* | CARGO_NET_* | CARGO_REGISTR* | CARGO_SOURCE_*) ;;
        CARGO_* | RUSTFLAGS | RUSTDOCFLAGS | RUSTC_* | CLIPPY_* | MAKEFLAGS | MFLAGS) unset "$name" ;;
        OUT_DIR | TARGET | NUM_JOBS | OPT_LEVEL | PROFILE | DEBUG | DEP_*) unset "$name" ;;
        esac
    done
    folder=$(mktemp -d "$bin/.protoc-build.XXXXXX")
    trap 'rm -rf "$folder"' EXIT
    # From here, so that rust-toolchain.toml counts. HOST: what this machine is, as Cargo tells build scripts.
    cd "$here"
    "${CARGO:-cargo}" install --path . --locked --quiet --no-track --root "$folder" --target-dir "$folder/target" \
        ${HOST:+--target "$HOST"} >&2
    # Into place as a whole: callers at the same time never see half of it.
    mv -f "$folder/bin/protoc-by-protox" "$program"
)

if [ ! -x "$program" ]; then
    (
        # Without flock, callers at the same time build it twice, which does no harm.
        ! command -v flock >/dev/null || flock 9
        [ -x "$program" ] || build || { say "building it failed; install protoc, or set PROTOC to one"; exit 1; }
    ) 9>"$bin/.lock.protoc"
fi
exec "$program" "$@"
