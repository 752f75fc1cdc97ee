#!/usr/bin/env bash
# kernels.sh: compile kernels/cpu/c to the Go assembly in kernels/cpu. The bytes depend on the compiler,
# so its version is fixed; where it is not installed, its Debian packages are unpacked into a cache, on the side.
# Names of C files (without ending) may be given; otherwise all are compiled.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=19.1.7

is() { "$1" --version 2>/dev/null | grep -q "clang version $version"; }

clang=clang-19
if ! is "$clang"; then
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/estiba/clang-$version
	clang=$cache/clang
	if ! is "$clang"; then
		echo "kernels: clang $version is not installed; fetching its packages into $cache (130 MB, a minute)" >&2
		hack/kernels/fetch-clang.sh "$cache"
		is "$clang" || { echo "kernels: $clang is not clang $version; install clang-19 $version" >&2; exit 1; }
	fi
fi
CLANG=$clang go run ./hack/kernels "$@"
