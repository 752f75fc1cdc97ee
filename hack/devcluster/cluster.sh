#!/usr/bin/env bash
# cluster.sh NODES: first process of the cluster's namespaces (run by `devcluster up`).
# Control plane and node-1 share them; each further node gets its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
nodes=$1 pki=$STATE/pki
export NODES=$nodes PATH=$BIN:$PATH

ip link set lo up
ip link add nodes type bridge
ip address add 10.250.0.1/24 dev nodes
ip link set nodes up

start() { # its process id, as seen in here, is for `devcluster signal`
	"$@" >"$STATE/log/$1.log" 2>&1 &
	echo $! >"$STATE/run/$1.pid"
}

# The API server comes back when it dies, so that tests can kill it.
keep() {
	while true; do
		"$@" >>"$STATE/log/$1.log" 2>&1 &
		echo $! >"$STATE/run/$1.pid"
		wait $! || sleep 1
	done
}

start etcd --data-dir "$STATE/etcd" --unsafe-no-fsync \
	--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
	--listen-peer-urls http://127.0.0.1:2380
keep kube-apiserver --etcd-servers http://127.0.0.1:2379 \
	--secure-port "$PORT" --advertise-address 10.250.0.1 \
	--tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
	--client-ca-file "$pki/ca.crt" --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
	--service-account-issuer https://kubernetes.default.svc.cluster.local \
	--service-account-signing-key-file "$pki/sa.key" --service-account-key-file "$pki/sa.key" \
	--service-cluster-ip-range 10.96.0.0/16 --allow-privileged \
	--kubelet-preferred-address-types InternalIP --kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" \
	--kubelet-client-key "$pki/apiserver-kubelet-client.key" --kubelet-certificate-authority "$pki/ca.crt" \
	--requestheader-client-ca-file "$pki/front-proxy-ca.crt" --requestheader-allowed-names front-proxy-client \
	--requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
	--requestheader-extra-headers-prefix X-Remote-Extra- \
	--proxy-client-cert-file "$pki/front-proxy-client.crt" --proxy-client-key-file "$pki/front-proxy-client.key" &

echo 1 >"$STATE/run/node-1.pid" # as seen in this pid namespace, for `devcluster enter`
"$here/node.sh" 1 >"$STATE/log/node-1.log" 2>&1 &
for i in $(seq 2 "$nodes"); do
	unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc \
		"$here/node.sh" "$i" >"$STATE/log/node-$i.log" 2>&1 &
	outer=$!
	until child=$(cat "/proc/$outer/task/$outer/children") && [ -n "$child" ]; do sleep 0.05; done
	echo "${child%% *}" >"$STATE/run/node-$i.pid"
	ip link add "to-node-$i" type veth peer name eth0 netns "${child%% *}"
	ip link set "to-node-$i" master nodes up
done

until kubectl --kubeconfig "$pki/controller-manager.conf" get --raw /readyz >/dev/null 2>&1; do sleep 0.2; done
start kube-controller-manager --kubeconfig "$pki/controller-manager.conf" --leader-elect=false --kube-api-qps 200 --kube-api-burst 400 \
	--authentication-kubeconfig "$pki/controller-manager.conf" --authorization-kubeconfig "$pki/controller-manager.conf" \
	--use-service-account-credentials --service-account-private-key-file "$pki/sa.key" --root-ca-file "$pki/ca.crt" \
	--cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" --bind-address 127.0.0.1
start kube-scheduler --kubeconfig "$pki/scheduler.conf" --leader-elect=false --kube-api-qps 200 --kube-api-burst 400 \
	--authentication-kubeconfig "$pki/scheduler.conf" --authorization-kubeconfig "$pki/scheduler.conf" --bind-address 127.0.0.1
wait
