#!/usr/bin/env bash
# Builds the programs of a real control plane from the Go modules that go.mod pins,
# and prints the folder that holds them.
#
#   build.sh [NAME...]     the programs wanted; all of them when none is named
#
# What is there already is not built again: the folder is a cache outside the source
# tree, named by what it was built from. Programs found in KUBEBUILDER_ASSETS are used
# instead of our own. Two callers at once are safe: one builds, the other waits.
#
#   HOOKWRIGHT_CACHE       where the cache is; default $XDG_CACHE_HOME/hookwright or ~/.cache/hookwright
#   KUBEBUILDER_ASSETS     a folder with etcd, kube-apiserver, kubectl, perhaps kube-controller-manager and helm
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${HOOKWRIGHT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hookwright}"
assets="${KUBEBUILDER_ASSETS:-}"
all=(etcd kube-apiserver kube-controller-manager kubectl helm)

say() { printf 'control-plane: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

package_of() {
    case "$1" in
        etcd) echo go.etcd.io/etcd/server/v3 ;;
        helm) echo helm.sh/helm/v4/cmd/helm ;;
        kube-apiserver | kube-controller-manager | kubectl) echo "k8s.io/kubernetes/cmd/$1" ;;
        *) die "no program is called $1; there are: ${all[*]}" ;;
    esac
}

version_of() { awk -v module="$1" '$1 == module && $2 ~ /^v/ { print $2; exit }' "$here/go.mod"; }

# Without these kubectl cannot parse its own version, and the server says v0.0.0.
link_flags() {
    local kubernetes helm major minor path flags="-s -w"
    kubernetes="$(version_of k8s.io/kubernetes)"
    helm="$(version_of helm.sh/helm/v4)"
    IFS=. read -r major minor _ <<<"${kubernetes#v}"
    for path in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $path.gitVersion=$kubernetes -X $path.gitMajor=$major -X $path.gitMinor=$minor"
        flags+=" -X $path.gitTreeState=clean"
    done
    echo "$flags -X helm.sh/helm/v4/internal/version.version=$helm"
}

find_go() {
    command -v go && return
    local usual=/usr/local/go/bin/go
    [[ -x $usual ]] && echo "$usual" && return
    die "Go is needed to build the control plane, and there is no 'go' in PATH." \
        "Install Go $(awk '$1 == "go" { print $2 }' "$here/go.mod") or newer (https://go.dev/dl)," \
        "or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver and kubectl."
}

# The outermost callers see a program whole or not at all: built beside, then moved.
build() {
    local name="$1" go begun=$SECONDS
    go="$(find_go)"
    say "building $name (the first time this takes minutes; kept in $folder)"
    (cd "$here" && CGO_ENABLED=0 GOWORK=off "$go" build -trimpath -buildvcs=false -ldflags "$(link_flags)" \
        -o "$folder/.$name.$$" "$(package_of "$name")") ||
        die "building $name failed; the module proxy must be reachable the first time (go env GOPROXY)"
    mv "$folder/.$name.$$" "$folder/$name"
    say "built $name in $((SECONDS - begun)) s"
}

provide() {
    local name="$1"
    [[ -x $folder/$name ]] && return
    if [[ -n $assets && -x $assets/$name ]]; then
        ln -sfn "$assets/$name" "$folder/$name"
    else
        build "$name"
    fi
}

wanted=("$@")
[[ $# -gt 0 ]] || wanted=("${all[@]}")
for name in "${wanted[@]}"; do package_of "$name" >/dev/null; done
if [[ -n $assets ]]; then
    assets="$(cd "$assets" && pwd)" || die "KUBEBUILDER_ASSETS names a folder that is not there: $KUBEBUILDER_ASSETS"
fi

key="$( (cat "$here/go.mod" "$here/go.sum" "${BASH_SOURCE[0]}" && echo "$assets") | cksum | tr ' ' '-')"
folder="$cache/control-plane-$key"
mkdir -p "$folder"

exec 9>"$folder/.lock"
if command -v flock >/dev/null; then flock 9; fi
trap 'rm -f "$folder"/.*."$$"' EXIT
for name in "${wanted[@]}"; do provide "$name"; done
echo "$folder"
