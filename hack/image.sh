#!/usr/bin/env bash
# image.sh [cuda]: pack Estiba, and the demo's models, as image tarballs without
# Docker; with cuda, Estiba for GPUs alone. Prints a line for each on standard output: NAME TAR. An image's tag is a
# hash of what is in it, so a cluster never runs an older one under the same name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=bin/images
mkdir -p "$out"

pack() { # NAME SOURCE=PATH...
	local name=$1 tag
	shift
	go -C hack/devcluster build -o "$PWD/$out/devtool" ./devtool
	tag=$(for arg in "$@"; do find "${arg%%=*}" -type f | LC_ALL=C sort | xargs sha256sum; done | sha256sum | cut -c 1-12)
	"$out/devtool" image "localhost/$name:$tag" "$out/$name.tar" "$@"
	echo "localhost/$name:$tag $out/$name.tar"
}

# The program for GPUs is linked to glibc alone, and so is the driver, which the node puts into the container:
# the image has those files of the machine that builds it, and nothing of NVIDIA's. NVIDIA's container runtime puts the
# driver into /usr/lib64, since the image is not Debian's, and has the loader told; GKE puts it elsewhere, and tells nobody.
cuda() {
	local root=$out/cuda/root library=/lib/x86_64-linux-gnu loader=/lib64/ld-linux-x86-64.so.2 known lib
	local driver=/usr/lib64:/usr/local/nvidia/lib64 # as rpath, which holds for what the driver loads as well: runpath does not
	[ "$(uname -m)" = x86_64 ] || { echo "image: the image for GPUs is built on x86-64" >&2; exit 1; }
	echo "image: building estiba with CUDA" >&2
	rm -rf "$root" # not the program, which is made anew only where it has changed
	mkdir -p "$root$library" "$root${loader%/*}"
	(
		# shellcheck disable=SC1090
		source <(hack/cuda/env.sh)
		go build -tags cuda -ldflags "-extldflags=-Wl,--disable-new-dtags,-rpath,$driver" -o "$out/cuda/estiba" ./cmd/estiba
	)
	cp -L "$loader" "$root$loader"
	known=$(ldconfig -p)
	for lib in libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1; do # what libcuda and libnvidia-ml are linked to
		cp -L "$(awk -v lib="$lib" '$1 == lib && /x86-64/ { print $NF; exit }' <<<"$known")" "$root$library/$lib"
	done
	# It starts with what is in the image, on a machine without a driver too.
	"$root$loader" --inhibit-cache --library-path "$root$library" "$out/cuda/estiba" version >&2
	pack estiba-cuda "$out/cuda/estiba=/estiba" "$root=/"
}

if [ "${1:-}" = cuda ]; then
	cuda
	exit
fi
echo "image: building estiba (static, without cgo)" >&2
CGO_ENABLED=0 go build -o "$out/estiba" ./cmd/estiba
pack estiba "$out/estiba=/estiba"
pack estiba-demo-models test/models=/
