# The image that charts/hookwright runs: a static program and nothing beside it.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends musl-tools cmake && rm -rf /var/lib/apt/lists/*
RUN rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY . .
RUN make build TRIPLE="$(uname -m)-unknown-linux-musl" \
 && cp "target/$(uname -m)-unknown-linux-musl/release/hookwright" /hookwright

FROM scratch
COPY --from=build /hookwright /hookwright
USER 65532:65532
ENTRYPOINT ["/hookwright"]
