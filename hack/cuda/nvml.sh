#!/usr/bin/env bash
# nvml.sh: build the emulated NVML to libnvidia-ml.so.1 in the cache, as that of a new driver (new/) and of an
# old one (old/), and print their folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for cc in "${CC:-}" cc gcc clang clang-19; do
	[ -z "$cc" ] || ! command -v "${cc%% *}" >/dev/null || break
	cc=
done
[ -n "$cc" ] || { echo "nvml: no C compiler is here: install gcc, or name one in CC" >&2; exit 1; }

source=kernels/cuda/emulator/libnvml.c
flags=(-std=gnu11 -O2 -g1 -fPIC -shared -pthread -Wall -Wextra -Werror -Wl,-soname,libnvidia-ml.so.1)
folder=${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}/nvml-emulator/$( (cat "$source"; echo "$cc ${flags[*]}"; $cc --version) | sha256sum | cut -c1-24)
if [ ! -e "$folder" ]; then
	mkdir -p "$(dirname "$folder")"
	made=$(mktemp -d "$folder.XXXXXX")
	mkdir "$made/new" "$made/old"
	$cc "${flags[@]}" -o "$made/new/libnvidia-ml.so.1" "$source"
	$cc "${flags[@]}" -DOLD_DRIVER -o "$made/old/libnvidia-ml.so.1" "$source"
	mv -T "$made" "$folder" 2>/dev/null || rm -rf "$made" # another one was first
fi
echo "$folder"
