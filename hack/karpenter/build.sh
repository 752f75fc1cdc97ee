#!/usr/bin/env bash
# build.sh: build Karpenter with its fake cloud, where that has not been done.
# Prints the program and the folders of its custom resources. Said on standard
# error: what is built, and how far it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
version=$(go list -m -f '{{.Version}}' sigs.k8s.io/karpenter)
cache=${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}
program=$cache/karpenter-$(cat go.mod go.sum | sha256sum | cut -c 1-12)
mkdir -p "$cache"
exec 9>"$cache/karpenter.lock"
flock 9
go mod download >&2
if [ ! -x "$program" ]; then
	all=$(go list -deps sigs.k8s.io/karpenter/kwok | wc -l)
	echo "karpenter: building $version from source; about 3 minutes on two cores with an empty build cache" >&2
	SECONDS=0 built=0 last=0
	go build -v -ldflags "-s -w" -o "$program.partial" sigs.k8s.io/karpenter/kwok 2>&1 | while read -r line; do
		case $line in
		*[!a-zA-Z0-9._~/-]*) echo "$line" >&2 ;; # not a package: an error
		*) built=$((built + 1)) ;;
		esac
		if [ $((SECONDS - last)) -ge 15 ]; then
			last=$SECONDS
			echo "karpenter: built $built of at most $all packages, ${SECONDS}s" >&2
		fi
	done
	mv "$program.partial" "$program"
	echo "karpenter: built in ${SECONDS}s" >&2
fi
echo "$program"
module=$(go list -m -f '{{.Dir}}' sigs.k8s.io/karpenter)
echo "$module/pkg/apis/crds"
echo "$module/kwok/apis/crds"
