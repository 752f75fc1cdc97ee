#!/usr/bin/env bash
# verify.sh: fail where generated files, formatting or go.mod differ from what
# the sources give. Generated files are left as they should be, but for kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bad=0
fail() {
	echo "verify: $*" >&2
	bad=1
}

unformatted=$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l)
[ -z "$unformatted" ] || fail "not formatted (run make fmt):" $unformatted

for module in . hack/*/ test/*/; do
	[ -e "$module/go.mod" ] || continue
	go -C "$module" mod tidy -diff >/dev/null || fail "$module/go.mod or go.sum is not tidy (run go mod tidy there)"
done

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
generated=(api/v1alpha1/zz_generated.deepcopy.go config/crd charts/estiba/files)
cp -r --parents "${generated[@]}" "$before"
hack/generate.sh
for path in "${generated[@]}"; do
	diff -r "$before/$path" "$path" || fail "$path was not what the sources give; it is now, commit it"
done
hack/kernels.sh -verify || bad=1
hack/cuda/kernels.sh -verify || bad=1
exit $bad
