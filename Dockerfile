# syntax=docker/dockerfile:1
# The image of every program: docker buildx build --platform linux/amd64,linux/arm64 --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" .

# Debian 12, because a static binary on a glibc from 2.34 on resolves names without further files.
FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95.0-slim-bookworm AS build
ARG TARGETARCH
ARG BUILDARCH
# A C compiler and libc for the architecture that is built for.
RUN set -eu; \
    case "$TARGETARCH" in \
      amd64) packages="gcc-x86-64-linux-gnu libc6-dev-amd64-cross"; target=x86_64-unknown-linux-gnu; cc=x86_64-linux-gnu-gcc ;; \
      arm64) packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"; target=aarch64-unknown-linux-gnu; cc=aarch64-linux-gnu-gcc ;; \
      *) echo "no build for $TARGETARCH; use amd64 or arm64" >&2; exit 1 ;; \
    esac; \
    if [ "$TARGETARCH" = "$BUILDARCH" ]; then packages=gcc\ libc6-dev; cc=gcc; fi; \
    apt-get update; \
    apt-get install --yes --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/*; \
    printf '%s\n' "$target" >/target-triple; \
    name=$(printf %s "$target" | tr a-z- A-Z_); \
    printf 'export CARGO_TARGET_%s_LINKER=%s\nexport CC_%s=%s\n' "$name" "$cc" "$(printf %s "$target" | tr - _)" "$cc" >/target-env
WORKDIR /src
COPY rust-toolchain.toml ./
RUN rustup target add "$(cat /target-triple)"
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY e2e/Cargo.toml e2e/Cargo.toml
COPY e2e/src e2e/src
COPY e2e/tests e2e/tests
ARG COMMIT
# The explicit target keeps the flag away from build scripts and procedural macros.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,id=target-$TARGETARCH \
    set -eu; . /target-env; target=$(cat /target-triple); \
    SHARDED_ETCD_COMMIT="${COMMIT:-unknown}" RUSTFLAGS="-C target-feature=+crt-static" \
      cargo build --release --locked --package sharded-etcd-app --bin sharded-etcd --target "$target"; \
    mkdir -p /image/etc /image/tmp; \
    chmod 1777 /image/tmp; \
    cp "target/$target/release/sharded-etcd" /image/sharded-etcd; \
    printf 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >/image/etc/passwd; \
    printf 'nonroot:x:65532:\n' >/image/etc/group

FROM scratch
COPY --from=build /image/ /
COPY LICENSE /LICENSE
USER 65532:65532
LABEL org.opencontainers.image.title="sharded-etcd" \
      org.opencontainers.image.description="One etcd endpoint over several etcd clusters" \
      org.opencontainers.image.source="https://github.com/sharded-etcd/sharded-etcd" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["/sharded-etcd"]
