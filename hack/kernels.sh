#!/usr/bin/env bash
# kernels.sh: compile kernels/cpu/c to the Go assembly in kernels/cpu. Names of C files (without ending) may
# be given; otherwise all are compiled. With -verify nothing is written, and what differs from the sources fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CLANG=$(hack/kernels/clang.sh) go run ./hack/kernels "$@"
