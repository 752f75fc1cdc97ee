#!/usr/bin/env bash
# bench-storm.sh [STEPS]: homes that come, go and change, and requests of all lengths, at a
# worker with little room, a million steps; a fiftieth as many with models that compute.
# What is admitted stays within the claim, nobody's request fails, nothing gets stuck.
# ESTIBA_SEED=N begins where another run did.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ESTIBA_STORM=${1:-1000000} exec go test -count=1 -timeout 2h -run '^TestStormOf' ./runtime/worker -v
