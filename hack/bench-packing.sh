#!/usr/bin/env bash
# bench-packing.sh [SEEDS]: replay the published packing experiments (openb, 17 traces)
# by the operator's own decision and by the published policies, and hold them against
# the published results; then how long a decision takes, and what moves and churn do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seeds=${1:-10}
data=../shared/data
if [[ ! -d $data/openb ]]; then
	echo "SKIPPED: the traces are not in this checkout's ../shared" >&2
	exit 0
fi
go build -o bin/estiba ./cmd/estiba
openb=(--nodes "$data/openb/csv/openb_node_list_gpu_node.csv" --pods "$data/openb/csv/openb_pod_list_default.csv" --seeds "42-$((41 + seeds))")
echo '# decisions, and allocation at the end'
bin/estiba simulate packing "${openb[@]}" 2>/dev/null
bin/estiba simulate packing "${openb[@]}" --ties random 2>/dev/null
echo '# from a random start'
bin/estiba simulate packing "${openb[@]}" --policy Random --moves 1 2>/dev/null
echo '# instances that come and go: on many nodes, then on just enough'
churn=(--nodes "$data/openb/csv/openb_node_list_gpu_node.csv" --instances "$data/traces/alibaba-gpu2025-dlrm-instances.csv.gz" --policy Estiba,BestFit,FGD,FirstFit,Random --moves-per-hour 12)
bin/estiba simulate churn "${churn[@]}" 2>/dev/null
bin/estiba simulate churn "${churn[@]}" --gpus 3450 2>/dev/null
echo '# models on GPUs against the optimum'
go test -count=1 -run '^TestModelsGap$' ./internal/simulate -v | grep -v '^[=-]'
echo "# allocated % at 130 % demand, mean of $seeds seeds, published in brackets"
exec go test -count=1 -timeout 6h -run '^TestCompare$' ./internal/simulate -compare "$seeds" -v
