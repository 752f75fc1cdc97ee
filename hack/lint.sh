#!/usr/bin/env bash
# lint.sh: go vet, for code that compiles and is wrong; staticcheck, for code
# that is dead, deprecated or does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
staticcheck=$PWD/bin/tools/staticcheck
go -C hack/tools build -o "$staticcheck" honnef.co/go/tools/cmd/staticcheck
go vet ./...
"$staticcheck" ./...
go -C test/openai-go vet ./...
go -C hack/devcluster vet ./devtool ./deviceplugin # the rest are mains of a line or two
