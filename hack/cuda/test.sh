#!/usr/bin/env bash
# test.sh: test the CUDA backend and the reading of NVML without a GPU: the emulator, kernels on it in both orders of
# threads, the driver and the backend over the emulated driver with the race detector, and NVML over the
# emulated one. Nothing of NVIDIA's is needed; where there is no C compiler, env.sh gets one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source <(hack/cuda/env.sh --emulated)
step() { echo "test-cuda: $*" >&2; }

step "the emulator: planted bugs"
hack/cuda/emulator.sh --test
step "go vet"
tagged=(./kernels/cuda ./runtime/backend/cuda/... ./runtime/device/...)
go vet -tags cuda "${tagged[@]}" ./cmd/estiba
for schedule in inorder greedy; do
	step "kernels, schedule $schedule"
	ESTIBA_EMULATED_CUDA=schedule=$schedule,capability=9.0 go test -tags cuda -count 1 -timeout 15m ./kernels/cuda ./runtime/backend/cuda/kerneltest
done
sanitizer=$($CXX -print-file-name=libasan.so) # gcc's; clang has another
if [ -e "$sanitizer" ]; then
	step "kernels, with the address sanitizer"
	asan=$(hack/cuda/emulator.sh --asan)
	ESTIBA_EMULATED_CUDA=capability=9.0 LD_LIBRARY_PATH=$asan go test -exec "env LD_PRELOAD=$sanitizer ASAN_OPTIONS=detect_leaks=0,handle_segv=0" -tags cuda -count 1 -timeout 15m ./runtime/backend/cuda/kerneltest
else
	step "no address sanitizer: that needs gcc"
fi
step "the driver and the backend, with the race detector"
go test -race -tags cuda -count 1 -timeout 15m ./runtime/backend/cuda ./runtime/backend/cuda/driver
step "estiba serve"
ESTIBA_EMULATED_CUDA=devices=2,memory=256Mi go test -tags cuda -count 1 -timeout 5m -run '^TestCUDA' ./internal/standalone
step "NVML, with the race detector"
hack/cuda/nvml-test.sh -race
