#!/usr/bin/env bash
# node.sh NUMBER: one real node, in the namespaces this process was started in.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
i=$1 name=node-$1 node=$STATE/node-$1 pki=$STATE/pki
cgroup=$CGROUP/$name

hostname "$name"
ip link set lo up
link=nodes
if [ "$i" != 1 ]; then
	link=eth0
	until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
	ip address add "10.250.0.$i/24" dev eth0
	ip link set eth0 up
fi
ip route add 10.96.0.0/16 dev $link # without a route, a connection to a Service fails before NAT sees it
for j in $(seq "$NODES"); do
	[ "$j" = "$i" ] || ip route add "10.244.$j.0/24" via "10.250.0.$j"
done
echo 1 >/proc/sys/net/ipv4/ip_forward

# Every program below keeps its usual paths; what is mounted there is this node's own.
mkdir -p "$node/lib/kubelet" "$node/log" "$node/cni"
touch "$node/resolv.conf"
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount --bind "$node/lib" /var/lib
mount --bind "$node/log" /var/log

# The kubelet wants these values and would set them for the whole machine. It
# is shown files that hold them already.
while read -r key value; do
	mkdir -p "$node/sys/${key%/*}"
	echo "$value" >"$node/sys/$key"
	mount --bind "$node/sys/$key" "/proc/sys/$key"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	# cgroup v2: a folder has the controllers that each folder above it passes on.
	# One that holds processes cannot, unless it is the machine's root: where this
	# machine is itself a container, its processes move into a leaf first.
	enable() { sed 's/[^ ]*/+&/g' "$1/cgroup.controllers" >"$1/cgroup.subtree_control"; }
	if ! enable /sys/fs/cgroup 2>/dev/null; then
		mkdir -p /sys/fs/cgroup/init
		while read -r pid; do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs || true; done </sys/fs/cgroup/cgroup.procs
		enable /sys/fs/cgroup
	fi
	for d in "${cgroup%/*}" "$cgroup"; do
		mkdir -p "/sys/fs/cgroup$d"
		enable "/sys/fs/cgroup$d"
	done
else
	# cgroup v1: one folder per controller; a new cpuset has no CPUs until told.
	for c in /sys/fs/cgroup/*/; do
		[ -e "$c/cgroup.controllers" ] && continue # the unused v2 of a mixed machine
		for d in "${cgroup%/*}" "$cgroup"; do
			mkdir -p "$c$d"
			for f in cpuset.cpus cpuset.mems; do
				[ -e "$c$f" ] && cat "$c$f" >"$c$d/$f"
			done
		done
	done
fi

fill() { # put this node's values into a configuration file
	sed -e "s|@NAME@|$name|g; s|@NODE@|$node|g; s|@PKI@|$pki|g; s|@BIN@|$BIN|g; s|@CGROUP@|$cgroup|g; s|@PODCIDR@|10.244.$i.0/24|g" \
		"$here/config/$1" >"$2"
}
fill containerd.toml "$node/containerd.toml"
fill kubelet.yaml "$node/kubelet.yaml"
fill kube-proxy.yaml "$node/kube-proxy.yaml"
fill cni.conflist "$node/cni/pods.conflist"

start() {
	"$@" >"$STATE/log/$name-$1.log" 2>&1 &
	echo $! >"$STATE/run/$name-$1.pid"
}
start containerd --config "$node/containerd.toml"
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for tar in "$BIN"/images/*.tar; do ctr --namespace k8s.io images import --local "$tar"; done
start kubelet --config "$node/kubelet.yaml" --kubeconfig "$pki/kubelet-$name.conf" \
	--hostname-override "$name" --node-ip "10.250.0.$i"
start kube-proxy --config "$node/kube-proxy.yaml"
until [ -S /var/lib/kubelet/device-plugins/kubelet.sock ]; do sleep 0.1; done
[ "$GPUS" = 0 ] || start deviceplugin -count "$GPUS" -prefix "GPU-$name"
wait
