#!/usr/bin/env bash
# generate.sh: make what is generated from the Go types: deep copies, CRDs, and
# the chart's copies of CRDs and permissions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
go tool -modfile=hack/tools/go.mod controller-gen object paths=./api/... \
	crd output:crd:artifacts:config=config/crd
for part in crd rbac; do
	rm -rf "charts/estiba/files/$part"
	mkdir -p "charts/estiba/files/$part"
	cp config/$part/*.yaml "charts/estiba/files/$part/"
done
