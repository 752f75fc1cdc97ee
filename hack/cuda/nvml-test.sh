#!/usr/bin/env bash
# nvml-test.sh: test what loads and reads NVML, over the emulated one. Arguments are for go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source <(hack/cuda/env.sh)
ESTIBA_NVML_LIBRARIES=$(hack/cuda/nvml.sh)
export ESTIBA_NVML_LIBRARIES LD_LIBRARY_PATH=$ESTIBA_NVML_LIBRARIES/new${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
go test -tags cuda -count 1 "$@" ./runtime/device/...
