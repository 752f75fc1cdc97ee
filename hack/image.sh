#!/usr/bin/env bash
# image.sh: pack Estiba, and the demo's models, as image tarballs without
# Docker. Prints a line for each on standard output: NAME TAR. An image's tag is a
# hash of what is in it, so a cluster never runs an older one under the same name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=bin/images
mkdir -p "$out"
echo "image: building estiba (static, without cgo)" >&2
CGO_ENABLED=0 go build -o "$out/estiba" ./cmd/estiba
go -C hack/devcluster build -o "$PWD/$out/devtool" ./devtool

pack() { # NAME SOURCE=PATH...
	local name=$1 tag
	shift
	tag=$(for arg in "$@"; do find "${arg%%=*}" -type f | LC_ALL=C sort | xargs sha256sum; done | sha256sum | cut -c 1-12)
	"$out/devtool" image "localhost/$name:$tag" "$out/$name.tar" "$@"
	echo "localhost/$name:$tag $out/$name.tar"
}
pack estiba "$out/estiba=/estiba"
pack estiba-demo-models test/models=/
