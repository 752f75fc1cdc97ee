#!/usr/bin/env bash
# bench-gateway.sh [ROUNDS]: what the gateway adds to a request, and how many it
# passes, beside Go's own httputil.ReverseProxy in the same run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec go test -count=1 -run '^TestCompare$' ./internal/gateway -compare "${1:-5}" -v
