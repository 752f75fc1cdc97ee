#!/usr/bin/env bash
# bench-scale.sh [MODELS WORKERS MINUTES]: an operator with Models on simulated
# workers and a real API server. How fast all get a home, from nothing; then, for
# MINUTES in which one in a hundred goes, one comes and one is asked for each
# minute, what the operator takes. Builds etcd and kube-apiserver if need be.
# JSON=FILE and PROFILE=FOLDER (made if need be) keep the result and the operator's profiles.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
models=${1:-10000} workers=${2:-1000} minutes=${3:-5}
KUBEBUILDER_ASSETS=$(hack/devcluster/devcluster build)
export KUBEBUILDER_ASSETS CGO_ENABLED=0
more=()
if [ -n "${JSON:-}" ]; then
	more+=(-result "$(realpath -m "$JSON")")
fi
if [ -n "${PROFILE:-}" ]; then
	mkdir -p "$PROFILE"
	more+=(-profile "$(realpath "$PROFILE")")
fi
exec go test -count=1 -timeout 3h -run '^TestScale$' -v ./test/scale -models "$models" -workers "$workers" -minutes "$minutes" -churn 0.01 "${more[@]}"
