# docker build -t blender-multiuser .
#
# The image holds one static program, which runs as an ordinary user. Nothing but a Docker engine is needed to build it.

ARG BUILD_IMAGE=rust:1-alpine
ARG BASE_IMAGE=scratch

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
# Alpine needs the C library's start files to link; other base images bring them.
RUN if command -v apk >/dev/null; then apk add --no-cache musl-dev; fi
# Static also where the base image has glibc. A named target keeps the flag away from what runs while building.
ENV RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols

# The dependencies first and by themselves, so that a new version of the server builds in a moment. Benchmarks stay outside.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[bench\]\]$/,/^$/d' Cargo.toml \
    && mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --release --target "$(rustc -vV | sed -n 's/^host: //p')"

COPY src src
# Files keep the dates of the checkout, which may be older than what was built above.
RUN touch src/lib.rs src/main.rs \
    && cargo build --locked --release --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && mkdir -p /image/data /image/bin \
    && cp target/*/release/blender-multiuser /image/bin/ \
    && /image/bin/blender-multiuser --version

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="blender-multiuser" \
    org.opencontainers.image.description="Collaboration server for Blender's Multi-User add-on" \
    org.opencontainers.image.licenses="GPL-3.0-or-later"
COPY LICENSE /LICENSE
COPY --from=build /image/bin/blender-multiuser /usr/local/bin/blender-multiuser
# A new volume takes over this owner. A directory of the host keeps its own: see docker-compose.yml.
COPY --from=build --chown=10001:10001 /image/data /data

USER 10001:10001
ENV DATA_DIR=/data
WORKDIR /data
VOLUME /data
EXPOSE 5555 5556 5557 5558
# Asks the running server over the network, as an add-on does; PORT counts here, too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["blender-multiuser", "health"]
ENTRYPOINT ["blender-multiuser"]
