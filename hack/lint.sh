#!/usr/bin/env bash
# lint.sh: go vet, for code that compiles and is wrong; staticcheck, for code
# that is dead, deprecated or does nothing. What has files with the tag cuda is looked at with it as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
staticcheck=$PWD/bin/tools/staticcheck
go -C hack/tools build -o "$staticcheck" honnef.co/go/tools/cmd/staticcheck
go vet ./...
"$staticcheck" ./...
(
	source <(hack/cuda/env.sh)
	tagged=(./kernels/cuda/... ./runtime/backend/... ./runtime/device/...)
	go vet -tags cuda "${tagged[@]}" ./internal/standalone
	"$staticcheck" -tags cuda "${tagged[@]}"
)
go -C test/openai-go vet ./...
go -C hack/devcluster vet ./devtool ./deviceplugin # the rest are mains of a line or two
