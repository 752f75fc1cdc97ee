#!/usr/bin/env bash
# demo-kubernetes.sh: from nothing to a completion in a real cluster: chart,
# kubectl apply, worker pod, gateway. On a terminal the cluster is left running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export STATE=${STATE:-${ESTIBA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba}/demo} PORT=${PORT:-6444}
listen=${LISTEN:-127.0.0.1:8080}
devcluster() { hack/devcluster/devcluster "$@"; }
say() { printf '\n# %s\n' "$*" >&2; }
show() {
	printf '$ %s\n' "$*" >&2
	"$@"
}

finish() {
	local code=$?
	if [ "$code" != 0 ]; then
		say "the demo failed; what is in the cluster:"
		timeout 20 kubectl get pods,model,ipool --all-namespaces -o wide >&2 || true
		timeout 20 kubectl --namespace estiba logs --selector app.kubernetes.io/name=estiba --tail=20 --prefix >&2 || true
	elif [ -t 1 ]; then
		say "It stays up. Ask it more:"
		cat >&2 <<END
  curl http://$listen/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "stories", "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 60}'
  export STATE=$STATE PORT=$PORT && eval "\$(hack/devcluster/devcluster env)"
  kubectl get model,ipool -o wide
Take it down:
  STATE=$STATE hack/devcluster/devcluster down
END
		return
	fi
	say "taking the cluster down"
	devcluster down
	exit "$code"
}

taken() { (: <"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

# ours ADDRESS: an earlier demo, whose cluster is still up, forwards from there.
ours() {
	local pid
	while read -r pid; do
		tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "devtool forward $1 " && return
	done 2>/dev/null < <(cat "$STATE/forwarders" 2>/dev/null)
	return 1
}

# Before minutes of building: an address for the gateway, where no other program answers.
for port in $(seq "$((${listen##*:} + 1))" "$((${listen##*:} + 20))"); do
	if ours "$listen" || ! taken "$listen"; then break; fi
	if [ -n "${LISTEN:-}" ]; then
		echo "another program listens on $LISTEN; choose another address for LISTEN" >&2
		exit 1
	fi
	listen=${listen%:*}:$port
done

trap finish EXIT

say "a real Kubernetes on this machine"
devcluster up
eval "$(devcluster env)"

say "Estiba's image, and one with the demo's models"
images=$(hack/image.sh)
read -r image image_tar models models_tar <<<"$(echo "$images" | xargs)"
devcluster load "$image_tar" "$models_tar"

say "the chart"
show helm upgrade --install estiba charts/estiba --namespace estiba --create-namespace --wait --timeout 3m \
	--set "image.repository=${image%:*}" --set "image.tag=${image##*:}" --hide-notes >&2

say "a pool of workers, and two models"
sed "s|@MODELS@|$models|" hack/demo-kubernetes.yaml | kubectl apply -f - >&2
show kubectl wait --for=condition=Ready --timeout=180s model/stories model/stories-f16 >&2
kubectl wait --for=jsonpath={.status.models}=2 --timeout=60s ipool/cpu >/dev/null

say "a completion through the gateway"
service=$(kubectl --namespace estiba get service estiba-gateway -o jsonpath='{.spec.clusterIP}:{.spec.ports[0].port}')
ours "$listen" || devcluster forward "$listen" "$service"
go run ./hack/demo --ask "http://$listen"

say "where the models are"
show kubectl get model,ipool -o wide
