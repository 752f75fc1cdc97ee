#!/usr/bin/env bash
# ptxas.sh: print where NVIDIA's assembler is, the version whose bytes are committed: out of Debian's
# nvidia-cuda-toolkit (non-free; fetched into a cache, where only the assembler is kept, and not a part of
# Estiba). Fails, and says why, where it cannot be had.
set -euo pipefail
version=12.4.131
cache=${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}/ptxas-$version

is() { [[ $("$1" --version 2>/dev/null) == *"V$version"* ]]; }

ptxas=${PTXAS:-$cache/ptxas}
if ! is "$ptxas"; then
	echo "kernels: fetching the assembler for NVIDIA's processors into $cache (87 MB to fetch, 30 MB kept)" >&2
	mkdir -p "$cache"
	exec 8>"$cache.lock"
	flock 8 # another one may be at it
	if ! is "$ptxas"; then
		rm -rf "$cache/root"
		"$(dirname "${BASH_SOURCE[0]}")/../debian.sh" "$cache/root" trixie/non-free nvidia-cuda-toolkit
		mv "$(find "$cache/root/usr" -name ptxas -type f | head -1)" "$cache/ptxas"
		rm -rf "$cache/root"
	fi
	is "$ptxas" || { echo "kernels: $ptxas is not version $version; remove $cache" >&2; exit 1; }
fi
echo "$ptxas"
