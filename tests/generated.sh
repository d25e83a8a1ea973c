#!/usr/bin/env bash
# Generated files: crds/*.yaml from the Rust types, and the chart's copy of them.
# `write` makes them anew, `check` fails when one is not current.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:?write or check}

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
cargo run --quiet --locked --bin hookwright -- crds |
  awk -v dir="$fresh" '
    function flush() { if (doc != "") printf "%s", doc > (dir "/" name ".yaml"); doc = ""; name = "" }
    /^---$/ { flush(); next }
    name == "" && /^  name: / { name = $2 }
    { doc = doc $0 "\n" }
    END { flush() }'

for place in crds charts/hookwright/files/crds; do
  case $mode in
    write) mkdir -p "$place"; rm -f "$place"/*.yaml; cp "$fresh"/*.yaml "$place"/ ;;
    check) diff -ru "$place" "$fresh" || { echo "$place is not current: run 'make generate'" >&2; exit 1; } ;;
    *) echo "write or check, not $mode" >&2; exit 2 ;;
  esac
done
