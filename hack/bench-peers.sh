#!/usr/bin/env bash
# bench-peers.sh: Estiba beside llama.cpp, on the same files, in turns. It unpacks llama.cpp from Debian's
# packages and makes model files, both in a cache folder (PEERS; some 10 GB with all models), measures, prints
# tables, and writes a full measurement to docs/benchmarks.md. All of it takes an hour; parts of it:
#   MODELS=tinyllama-q8_0,stories15m-q8_0   which models (hack/benchpeers/models.go lists them)
#   PARTS=speed                             of speed,batch,start,load,loss
#   THREADS=1,2  ROUNDS=1                   default: one and all processors; 3
#   WRITE=1                                 write a part of it to docs/benchmarks.md too
#   JSON=FILE                               keep every sample
# The machine should be quiet: a run during which others take more than QUIET (0.2) processors is repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
peers=$(realpath -m "${PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/estiba/peers}")
root=$peers/llama.cpp
mkdir -p "$peers"
if [ ! -e "$root" ]; then
	echo "bench-peers: unpack llama.cpp of Debian's sid and the libraries it needs into $root" >&2
	# A snapshot of sid may be older than its index says it is good for.
	echo 'Acquire::Check-Valid-Until "false";' >"$peers/apt.conf"
	APT_CONFIG=$peers/apt.conf hack/debian.sh "$root" sid llama.cpp-tools llama.cpp-tools-extra libllama0 libggml0 \
		libc6 libgcc-s1 libgomp1 libstdc++6 libssl3t64 zlib1g libzstd1
fi
for folder in bin lib lib64 sbin; do
	[ -e "$root/$folder" ] || [ ! -d "$root/usr/$folder" ] || ln -s "usr/$folder" "$root/$folder"
done
mkdir -p "$root"/{models,tmp,dev,proc}
echo "bench-peers: build bin/estiba" >&2
CGO_ENABLED=0 go build -o bin/estiba ./cmd/estiba
go build -o "$peers/benchpeers" ./hack/benchpeers
exec "$peers/benchpeers" -root "$root" -models "${MODELS:-}" -parts "${PARTS:-}" -threads "${THREADS:-}" -rounds "${ROUNDS:-3}" \
	-quiet "${QUIET:-0.2}" -json "${JSON:-}" -write="$([ -n "${WRITE:-}" ] && echo true || echo false)"
