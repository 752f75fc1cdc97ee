#!/usr/bin/env bash
# fetch-clang.sh: put a clang 19 that compiles freestanding C into a folder, as FOLDER/clang: Debian 12's
# packages with the libraries that they need, libc too, so that the machine's own do not matter.
set -euo pipefail
folder=$1
mkdir -p "$folder"
"$(dirname "${BASH_SOURCE[0]}")/../debian.sh" "$folder/root" bookworm clang-19 libclang-common-19-dev libclang-cpp19 libllvm19 \
	libc6 libstdc++6 libgcc-s1 libffi8 libedit2 libz3-4 zlib1g libzstd1 libxml2 libtinfo6 libbsd0 libicu72 liblzma5 libmd0
cat >"$folder/clang.new" <<'END'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
for lib in "$root"/lib/*-linux-gnu*; do break; done
exec "$lib"/ld-linux-*.so.* --library-path "$lib:$root/usr/lib/${lib##*/}:$root/usr/lib/llvm-19/lib" \
	"$root/usr/lib/llvm-19/bin/clang" -resource-dir "$root/usr/lib/llvm-19/lib/clang/19" "$@"
END
chmod +x "$folder/clang.new"
mv "$folder/clang.new" "$folder/clang"
