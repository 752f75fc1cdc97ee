#!/usr/bin/env bash
# build.sh: build everything that a development cluster runs into $BIN. Run by
# `devcluster up`, which sets BIN and holds the lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
partial=$BIN.partial
rm -rf "$partial"
mkdir -p "$partial/images"
log=$BIN.log
: >"$log"

containerd=(github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr})
network=(github.com/containernetworking/plugins/plugins/{main/bridge,ipam/host-local,meta/portmap})
helm=helm.sh/helm/v4/cmd/helm
images=(pause coredns)
# No -trimpath: with it, nothing in the build cache is shared with the project's own builds and tests.
export GOFLAGS=-buildvcs=false

echo "devcluster: building Kubernetes, etcd, containerd, runc, CoreDNS and Helm from source into $BIN" >&2
echo "devcluster: about 13 minutes on two cores with an empty build cache, half a minute with a full one" >&2
go mod download >>"$log" 2>&1 || { tail -n 5 "$log" >&2; echo "devcluster: cannot download modules; see $log" >&2; exit 1; }
all=$(CGO_ENABLED=0 go list -deps ./kube ./devtool ./deviceplugin ./pause ./coredns "${containerd[@]}" "${network[@]}" "$helm" | wc -l)
SECONDS=0 built=0

# run COMMAND...: run go build -v, count the packages it names, say now and then how far it is.
run() {
	local line last=$SECONDS
	while true; do
		if IFS= read -r -t 5 line; then
			printf '%s\n' "$line" >>"$log"
			case $line in
			exit:0) return ;;
			exit:*)
				grep -v '^[a-zA-Z0-9./_-]*$' "$log" | tail -n 30 >&2
				echo "devcluster: the build failed; the whole log is $log" >&2
				return 1
				;;
			esac
			[[ $line =~ ^[a-zA-Z0-9._~/-]+$ ]] && built=$((built + 1))
		fi
		if [ $((SECONDS - last)) -ge 15 ]; then
			last=$SECONDS
			echo "devcluster: built $built of at most $all packages, $((SECONDS / 60))m$((SECONDS % 60))s" >&2
		fi
	done < <("$@" 2>&1 && echo exit:0 || echo "exit:$?")
}

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
IFS=. read -r major minor _ <<<"${version#v}"
x="-s -w" # without its version, a component calls itself v0.0.0-master and helm refuses charts
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	x+=" -X $p.gitVersion=$version -X $p.gitMajor=$major -X $p.gitMinor=$minor -X $p.gitTreeState=clean"
done
export CGO_ENABLED=0
run go build -v -ldflags "$x" -o "$partial/kube" ./kube
for c in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
	ln -sf kube "$partial/$c"
done
run go build -v -ldflags "-s -w" -o "$partial/" ./devtool ./deviceplugin "${containerd[@]}" "${network[@]}" "$helm"
run env CGO_ENABLED=1 go build -v -tags "seccomp netgo osusergo" -ldflags "-s -w -extldflags -static" \
	-o "$partial/runc" github.com/opencontainers/runc

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
for image in "${images[@]}"; do
	run go build -v -ldflags "-s -w" -o "$tmp/$image" "./$image"
	"$partial/devtool" image "localhost/$image:dev" "$partial/images/$image.tar" "$tmp/$image=/$image"
done
touch "$partial/complete"
rm -rf "$BIN"
mv "$partial" "$BIN"
rm -f "$log"
echo "devcluster: built in $((SECONDS / 60))m$((SECONDS % 60))s" >&2
