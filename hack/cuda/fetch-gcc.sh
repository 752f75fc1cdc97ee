#!/usr/bin/env bash
# fetch-gcc.sh: put a gcc that compiles and links C and C++ into a folder, as FOLDER/cc and FOLDER/c++: Debian 12's
# packages, with its libc to link with, so that what it makes runs on Debian 12 and newer.
set -euo pipefail
folder=$1
case $(uname -m) in
x86_64) triple=x86_64-linux-gnu binutils=binutils-x86-64-linux-gnu ;;
aarch64) triple=aarch64-linux-gnu binutils=binutils-aarch64-linux-gnu ;;
*) echo "fetch-gcc: not for $(uname -m)" >&2 && exit 1 ;;
esac
mkdir -p "$folder"
"$(dirname "${BASH_SOURCE[0]}")/../debian.sh" "$folder/root" bookworm gcc-12 cpp-12 g++-12 libgcc-12-dev libstdc++-12-dev libc6-dev linux-libc-dev libcrypt-dev \
	binutils "$binutils" libbinutils libctf0 libctf-nobfd0 libjansson4 libgmp10 libmpfr6 libmpc3 libisl23 libc6 libgcc-s1 libstdc++6 libasan8 libubsan1
for tool in cc:gcc-12 c++:g++-12; do
	cat >"$folder/${tool%:*}.new" <<END
#!/bin/sh
root=\$(dirname "\$(readlink -f "\$0")")/root
# what the compiler itself needs; libc is not among it, which must be the machine's
LD_LIBRARY_PATH=\$root/usr/lib/$triple exec "\$root/usr/bin/$triple-${tool#*:}" --sysroot="\$root" -B"\$root/usr/bin/" "\$@"
END
	chmod +x "$folder/${tool%:*}.new"
	mv "$folder/${tool%:*}.new" "$folder/${tool%:*}"
done
