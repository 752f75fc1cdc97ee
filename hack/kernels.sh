#!/usr/bin/env bash
# kernels.sh: compile kernels/cpu/c to the Go assembly in kernels/cpu. The bytes depend on the compiler,
# so its version is fixed; where it is not installed, Debian's packages of it are unpacked into a cache, on the side.
# Names of C files (without ending) may be given; otherwise all are compiled. With -verify nothing is
# written, and what differs from the sources fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=19.1.7

is() { "$1" --version 2>/dev/null | grep -q "clang version $version"; }

clang=${CLANG:-clang-19}
if ! is "$clang"; then
	cache=${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}/clang-$version
	clang=$cache/clang
	if ! is "$clang"; then
		echo "kernels: clang $version is not installed; unpacking Debian's packages of it into $cache (60 MB to fetch, 300 MB on disk)" >&2
		hack/kernels/fetch-clang.sh "$cache" || { echo "kernels: install clang $version as clang-19, or name it in CLANG" >&2; exit 1; }
		is "$clang" || { echo "kernels: $clang is not clang $version; remove $cache, and install clang $version as clang-19" >&2; exit 1; }
	fi
fi
CLANG=$clang go run ./hack/kernels "$@"
