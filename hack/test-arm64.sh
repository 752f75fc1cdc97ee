#!/usr/bin/env bash
# test-arm64.sh: build and vet everything for arm64, and run there, under QEMU, the tests of what computes.
# Where qemu-aarch64-static is not installed, Debian's package of it is unpacked into a cache, on the side.
set -euo pipefail
cd "$(dirname "$0")/.."
qemu=$(command -v qemu-aarch64-static) || {
	cache=${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}/qemu-aarch64
	qemu=$cache/qemu-aarch64-static
	[ -x "$qemu" ] || {
		echo "test-arm64: qemu-aarch64-static is not installed; unpacking Debian's package of it into $cache (60 MB to fetch, 400 MB on disk meanwhile)" >&2
		hack/debian.sh "$cache/root" bookworm qemu-user-static
		mv "$cache/root/usr/bin/qemu-aarch64-static" "$qemu"
		rm -rf "$cache/root" # the other processors
	}
}
export GOARCH=arm64 CGO_ENABLED=0
go build ./...
go vet ./...

# What emulation cannot show: a fault's address, a mapping of a terabyte, what takes how long or how much
# memory; and what would take minutes there, and computes nothing that the others do not.
skip=(
	TestGuard TestTruncatedFile                      # QEMU does not tell a SIGBUS's address
	TestATerabyteOpensAtOnce TestHostBytes           # QEMU maps no terabyte
	TestHugeModel TestEightAtOnce                    # in time
	TestHeadersAreBounded TestConformance$           # long
)
echo "test-arm64: $("$qemu" --version | head -1); not: ${skip[*]}" >&2
go test -exec "$qemu" -timeout 15m -skip "$(IFS='|'; echo "${skip[*]}")" "$@" \
	./kernels/cpu ./runtime/{arch,backend/cpu,engine,graph,model,quantize,sampling,tensor,weights}
