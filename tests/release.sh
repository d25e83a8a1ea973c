#!/usr/bin/env bash
# Builds the program as it is released, and fails unless it is stripped and has no path of the machine that built it:
# panics in dependencies name their source, and C libraries theirs. Run by `make build`.
set -euo pipefail
cd "$(dirname "$0")/.."
triple="${1:-}"
cargo="${CARGO:-cargo}"
target="${TARGET_DIR:-$PWD/target}"
cargo_home="${CARGO_HOME:-$HOME/.cargo}"

# The last that fits wins. Each is told to rustc and to the C compiler.
remaps=("$HOME=/home" "$cargo_home=/cargo" "$PWD=/hookwright" "$target=/target")
rust="" c=""
for remap in "${remaps[@]}"; do
  rust+="${rust:+$'\x1f'}--remap-path-prefix=$remap"
  c+=" -ffile-prefix-map=$remap"
done
for flag in ${RUSTFLAGS:-}; do rust+=$'\x1f'"$flag"; done
export CARGO_ENCODED_RUSTFLAGS="$rust" CFLAGS="${CFLAGS:-}$c" CXXFLAGS="${CXXFLAGS:-}$c"
"$cargo" build --locked --release --bin hookwright ${triple:+--target "$triple"}

program="$target/${triple:+$triple/}release/hookwright"
for path in "$HOME" "$cargo_home" "$PWD" "$target"; do
  if found=$(grep --text --only-matching --fixed-strings --max-count=3 "$path/" "$program" | head -n 3) && [[ -n $found ]]; then
    echo "$program has paths below $path, such as:" >&2
    grep --text --only-matching "${path//./\\.}/[[:graph:]]\{0,120\}" "$program" | head -n 5 >&2
    exit 1
  fi
done
if grep --quiet --text --fixed-strings .symtab <(readelf --sections --wide "$program" 2>/dev/null || true); then
  echo "$program is not stripped" >&2
  exit 1
fi
"$program" --version
echo "$program: $(stat --format=%s "$program") bytes"
