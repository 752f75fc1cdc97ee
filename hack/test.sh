#!/usr/bin/env bash
# test.sh: every test that needs only Go; no root, no network but module downloads.
set -euo pipefail
cd "$(dirname "$0")/.."
go version
go build ./...
go test -timeout 15m "$@" ./...
