#!/usr/bin/env bash
# Generated files: crds/hookwright.dev.yaml from the Rust types, and the chart's copy of it.
# `write` makes them anew, `check` fails when one is not current.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:?write or check}
program=${2:?the hookwright program}

fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
"$program" crds >"$fresh"

for copy in crds/hookwright.dev.yaml charts/hookwright/files/crds.yaml; do
  case $mode in
    write) mkdir -p "$(dirname "$copy")"; cat "$fresh" >"$copy" ;;
    check) diff -u "$copy" "$fresh" || { echo "$copy is not current: run 'make generate'" >&2; exit 1; } ;;
    *) echo "write or check, not $mode" >&2; exit 2 ;;
  esac
done
