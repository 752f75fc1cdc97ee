#!/usr/bin/env bash
# test-kubernetes.sh [GO TEST FLAGS]: the tests that need a real API server
# (test/api, test/scale), then those that need a real cluster (test/kubernetes), in which
# they bring up what they need and take it down. For one of them alone:
#   hack/test-kubernetes.sh -run TestFailover
# TestKarpenter builds Karpenter first: 3 minutes on two cores, once.
# ESTIBA_TEST_KEEP=1 leaves the cluster for a look.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ "$(id -u)" = 0 ] || { echo "test-kubernetes: needs root, for namespaces, mounts and cgroups; run it as root (sudo -E)" >&2; exit 1; }

programs=$(hack/devcluster/devcluster build)
if ! command -v npm >/dev/null && command -v apt-get >/dev/null; then
	echo "test-kubernetes: installing Debian's nodejs and npm" >&2
	{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends nodejs npm; } >&2
fi
if command -v npm >/dev/null; then
	(cd test/openai-node && npm ci --no-audit --no-fund --loglevel=error) >&2
fi
export CGO_ENABLED=0
echo "test-kubernetes: the official clients, without a cluster" >&2
go test -count=1 ./test/openai
if [ -d test/api ]; then
	echo "test-kubernetes: the API server's part" >&2
	KUBEBUILDER_ASSETS=$programs go test -count=1 ./test/api/...
fi
echo "test-kubernetes: 300 Models on 30 simulated workers" >&2
KUBEBUILDER_ASSETS=$programs go test -count=1 ./test/scale
echo "test-kubernetes: the cluster's part; what it does is printed as it goes" >&2
folder=$(mktemp -d)
export ESTIBA_TEST_KUBERNETES=$folder/cluster
finish() {
	if [ -n "${ESTIBA_TEST_KEEP:-}" ]; then
		echo "test-kubernetes: the cluster is left; take it down with: STATE=$folder/cluster hack/devcluster/devcluster down" >&2
		return
	fi
	echo "test-kubernetes: taking the cluster down" >&2
	STATE=$folder/cluster hack/devcluster/devcluster down
	rmdir "$folder"
}
trap finish EXIT
go test -v -count=1 -timeout=30m ./test/kubernetes "$@" # -v: shown as it goes
