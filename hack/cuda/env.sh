#!/usr/bin/env bash
# env.sh: print what `go build -tags cuda` needs in its environment, as exports: source <(hack/cuda/env.sh).
# Nothing of NVIDIA's is needed: cuda.h is ours, and libcuda.a is empty (runtime/backend/cuda/driver says why).
# Where there is no C compiler, Debian's are unpacked into a cache, on the side.
#
#   --emulated  build the emulated driver as well, for programs to find as libcuda.so.1
#
# What it does is said on standard error. If it fails it prints false, for who sources it under set -e.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
trap '[ $? -eq 0 ] || echo false' EXIT
emulated=
case ${1:-} in
'') ;;
--emulated) emulated=1 ;;
*) echo "usage: hack/cuda/env.sh [--emulated]" >&2 && exit 2 ;;
esac

have() { [ -n "$1" ] && command -v "${1%% *}" >/dev/null; }
CC=${CC:-} CXX=${CXX:-}
if ! have "$CC" || ! have "$CXX"; then
	for pair in gcc:g++ cc:c++ clang:clang++ clang-19:clang++-19; do
		CC=${pair%:*} CXX=${pair#*:}
		if have "$CC" && have "$CXX"; then break; fi
	done
fi
if ! have "$CC" || ! have "$CXX"; then
	cache=${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}/cgo
	CC=$cache/cc CXX=$cache/c++
	if [ ! -x "$CXX" ]; then
		echo "env: there is no C compiler; unpacking Debian's gcc into $cache (60 MB to fetch, 240 MB on disk)" >&2
		hack/cuda/fetch-gcc.sh "$cache" || { echo "env: install gcc and g++, or name compilers in CC and CXX" >&2; exit 1; }
	fi
fi
export CC CXX

driver=$PWD/runtime/backend/cuda/driver
# go-nvml declares functions that NVIDIA has marked as deprecated, and the compiler warns of each.
printf 'export CGO_ENABLED=1 CC=%q CXX=%q\n' "$CC" "$CXX"
printf 'export CGO_CFLAGS=%q CGO_LDFLAGS=%q\n' "-O2 -g -I$driver/include -Wno-deprecated-declarations" "-O2 -g -L$driver/lib"
if [ -n "$emulated" ]; then
	echo "env: building the emulated driver, where it is not built yet (a minute)" >&2
	folder=$(hack/cuda/emulator.sh)
	printf 'export LD_LIBRARY_PATH=%q\n' "$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
