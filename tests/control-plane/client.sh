#!/usr/bin/env bash
# Builds ./pages, a program with client-go's dynamic client, from the modules that go.mod pins, and prints its path.
# Kept in the same cache as the control plane (see build.sh), named by what it was built from.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${HOOKWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hookwright}"
key="$(cat "$here/go.mod" "$here/go.sum" "$here/pages/main.go" "${BASH_SOURCE[0]}" | cksum | tr ' ' '-')"
program="$cache/pages-$key"

if [[ ! -x $program ]]; then
    go="$(command -v go || echo /usr/local/go/bin/go)"
    [[ -x $go ]] || {
        echo "pages: Go is needed to build it, and there is no 'go' in PATH: https://go.dev/dl" >&2
        exit 1
    }
    mkdir -p "$cache"
    # Built beside, then moved: whoever comes at the same time sees it whole or not at all.
    (cd "$here" && CGO_ENABLED=0 GOWORK=off "$go" build -trimpath -buildvcs=false -ldflags "-s -w" \
        -o "$program.$$" ./pages) >&2
    mv "$program.$$" "$program"
fi
echo "$program"
