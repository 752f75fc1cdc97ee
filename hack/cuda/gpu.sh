#!/usr/bin/env bash
# gpu.sh: run what needs a GPU. It builds here and runs here, or runs elsewhere what was built here: bin/gpu with the
# tree around it is all that another machine needs, which may have neither Go nor a compiler nor a network.
#
#   gpu.sh build   build the tests of kernels, driver, backend and NVML into bin/gpu (40 MiB)
#   gpu.sh test    run them on the first device: every kernel, op, architecture and format, golden models, and what NVML tells
#   gpu.sh bench   measure the first device against docs/benchmarks.md's aims: a table, and figures as JSON in OUT (bin/gpu)
#
# test and bench build what is missing. Together they take less than ten minutes on a device.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
to=bin/gpu
tests=(runtime/backend/cuda runtime/backend/cuda/driver runtime/backend/cuda/kerneltest runtime/device)
out=${OUT:-$PWD/$to}

build() {
	source <(hack/cuda/env.sh)
	mkdir -p "$to"
	for folder in "${tests[@]}"; do
		go test -tags cuda -c -ldflags '-s -w' -o "$to/$(basename "$folder").test" "./$folder"
	done
}

export ESTIBA_GPU=1 # tests fail without a device, rather than be skipped

# run a folder's tests where they lie, as go test does.
run() {
	local folder=$1
	shift
	(cd "$folder" && "$OLDPWD/$to/$(basename "$folder").test" "$@")
}

case ${1:-} in
build) build ;;
test)
	[ -x "$to/cuda.test" ] || build
	for folder in "${tests[@]}"; do
		echo "gpu: $folder" >&2
		run "$folder" -test.timeout 5m -test.skip '^TestAims$'
	done
	;;
bench)
	[ -x "$to/cuda.test" ] || build
	ESTIBA_AIMS=$out/aims.json run runtime/backend/cuda -test.timeout 8m -test.run '^TestAims$'
	run runtime/backend/cuda/kerneltest -test.timeout 4m -test.run '^$' -test.bench Product -test.benchtime 20x | tee "$out/products.txt"
	;;
*) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2 && exit 2 ;;
esac
