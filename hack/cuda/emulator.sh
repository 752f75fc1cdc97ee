#!/usr/bin/env bash
# emulator.sh: build kernels/cuda/*.cu for the host, with the emulator and a driver over it, to a libcuda.so.1
# in the cache, and print its folder. Objects are kept by what they are made of, so only what changed is compiled.
#
#   --asan     with the address and undefined-behaviour sanitizers
#   --test     build and run the emulator's own test: kernels with planted bugs, each of which it must catch
#
# ESTIBA_SKIP_BROKEN=1 leaves out files that do not compile, and says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
asan= test=
for argument; do
	case $argument in
	--asan) asan=-asan ;;
	--test) test=1 ;;
	*) echo "usage: hack/cuda/emulator.sh [--asan] [--test]" >&2 && exit 2 ;;
	esac
done

for cxx in "${CXX:-}" g++ clang++ clang++-19; do
	[ -z "$cxx" ] || ! command -v "$cxx" >/dev/null || break
	cxx=
done
[ -n "$cxx" ] || { echo "emulator: no C++ compiler is here: install g++, name one in CXX, or let hack/cuda/env.sh --emulated get one" >&2; exit 1; }

flags=(-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -fno-strict-aliasing -fno-exceptions -fno-rtti -pthread -Wall -Wextra -Werror)
flags+=(-Wno-unknown-pragmas -Wno-unused-function -Wno-unused-parameter -Wno-psabi)
if [ -n "$asan" ]; then flags+=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer); fi
# fmaf without the instruction takes a hundred times as long
if [ "$(uname -m)" = x86_64 ] && grep -q -m1 '\bfma\b.*\bavx2\b' /proc/cpuinfo; then flags+=(-mavx2 -mfma); fi

cache=${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}/cuda-emulator
mkdir -p "$cache/objects"
headers=$(cat kernels/cuda/*.cuh kernels/cuda/emulator/*.h runtime/backend/cuda/driver/include/*.h 2>/dev/null | cat - <("$cxx" --version) <(echo "${flags[@]}") | sha256sum)

sources=(kernels/cuda/emulator/sim.cpp)
if [ -n "$test" ]; then
	sources+=(kernels/cuda/emulator/planted.cu kernels/cuda/emulator/test.cpp)
else
	sources+=(kernels/cuda/*.cu)
	[ ! -e kernels/cuda/emulator/libcuda.cpp ] || sources+=(kernels/cuda/emulator/libcuda.cpp)
fi

objects=() compiling=() failed=()
limit=$(nproc)
for source in "${sources[@]}"; do
	name=${source##*/}
	key=$( (echo "$headers"; cat "$source") | sha256sum | cut -c1-24)
	object=$cache/objects/$name$asan-$key.o
	objects+=("$object")
	if [ -e "$object" ]; then
		touch "$object"
		continue
	fi
	(
		defines=()
		[[ $source != *.cu ]] || defines=(-DESTIBA_EMULATED)
		[[ $source != *libcuda.cpp ]] || defines=(-fvisibility=default -fexceptions -frtti)
		"$cxx" "${flags[@]}" "${defines[@]}" -Ikernels/cuda -Iruntime/backend/cuda/driver/include -x c++ -c "$source" -o "$object.$$" && mv "$object.$$" "$object"
	) &
	compiling+=($!)
	if [ ${#compiling[@]} -ge "$limit" ]; then
		wait "${compiling[0]}" || true
		compiling=("${compiling[@]:1}")
	fi
done
for job in "${compiling[@]}"; do wait "$job" || true; done
made=()
for object in "${objects[@]}"; do
	if [ -e "$object" ]; then made+=("$object"); else failed+=("$(basename "${object%"$asan"-*}")"); fi
done
if [ ${#failed[@]} -gt 0 ]; then
	[ -n "${ESTIBA_SKIP_BROKEN:-}" ] || { echo "emulator: these do not compile: ${failed[*]}" >&2; exit 1; }
	echo "emulator: left out, since they do not compile: ${failed[*]}" >&2
fi

# -Bsymbolic: the driver's own names win over those of a program that loads it. What C++ needs is linked in, so that the
# driver needs what NVIDIA's does, glibc, and runs in a container that has no more; a sanitizer wants to share it, and some
# distributions have it in a package that is not there.
link=(-shared -Wl,-soname,libcuda.so.1 -Wl,-Bsymbolic)
if [ -z "$asan" ] && [ -e "$("$cxx" -print-file-name=libstdc++.a)" ]; then link+=(-static-libstdc++ -static-libgcc); fi
out=$cache/$(echo "${made[@]}" "${link[@]}" | sha256sum | cut -c1-24)$asan
if [ -n "$test" ]; then
	"$cxx" "${flags[@]}" "${made[@]}" -lm -o "$out.test"
	exec "$out.test"
fi
if [ ! -e "$out/libcuda.so.1" ]; then
	mkdir -p "$out"
	"$cxx" "${flags[@]}" "${link[@]}" "${made[@]}" -lm -ldl -o "$out/libcuda.so.1.$$"
	mv "$out/libcuda.so.1.$$" "$out/libcuda.so.1"
fi
touch "$out"
find "$cache" -mindepth 1 -maxdepth 1 ! -name objects -mtime +2 -exec rm -rf {} +
find "$cache/objects" -mtime +2 -delete
echo "$out"
