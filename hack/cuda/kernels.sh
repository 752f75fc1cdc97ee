#!/usr/bin/env bash
# kernels.sh: compile kernels/cuda/*.cu, one translation unit, to PTX, and assemble it for sm_80 and sm_90,
# into kernels/cuda, packed, with registers.txt: what each kernel takes of a processor. A kernel that spills
# registers to memory fails, unless it is in spills below. *_sm90.cu have instructions that only devices of compute
# capability 9.0 have; what they give is in the machine code for these beside the rest.
#
# With -verify nothing is written, and what differs from the sources fails; where the assembler cannot be
# had, the machine code counts as the sources' if registers.txt names the PTX that it was made of.
# With names of .cu files only those are compiled, and their part of registers.txt is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=kernels/cuda
# kernels that may spill: name, and why it is faster so.
spills=()

verify=
files=()
for argument; do
	case $argument in
	-verify) verify=1 ;;
	*.cu) files+=("$(realpath "$argument")") ;;
	*) echo "usage: hack/cuda/kernels.sh [-verify | FILE.cu...]" >&2 && exit 2 ;;
	esac
done
try=${#files[@]}
[ "$try" -gt 0 ] || for f in "$folder"/*.cu; do files+=("$(realpath "$f")"); done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
LC_ALL=C
includes=$(for f in "${files[@]}"; do dirname "$f"; done | sort -u | sed 's/^/-I/')
# ptx ARCHITECTURE VERSION OUT FILE...: compile files to PTX.
ptx() {
	local arch=$1 version=$2 out=$3
	shift 3
	for f; do echo "#include \"${f##*/}\""; done >"$work/kernels.cu"
	# shellcheck disable=SC2086
	"$(hack/kernels/clang.sh)" -x cuda --cuda-device-only -nocudainc -nocudalib --cuda-gpu-arch="$arch" --cuda-feature=+"$version" \
		-O3 -std=c++17 -ffp-contract=off -fno-strict-aliasing -fno-exceptions -fno-rtti -Wall -Wextra -Werror -Wno-unused-function \
		$includes -I$folder -S "$work/kernels.cu" -o "$out"
}
own=() rest=()
for f in "${files[@]}"; do
	case $f in *_sm90.cu) own+=("$f") ;; *) rest+=("$f") ;; esac
done
ptx sm_80 ptx70 "$work/estiba_compute80.ptx" "${rest[@]}"
cp "$work/estiba_compute80.ptx" "$work/sm80.ptx"
# For 9.0 both are one file; what both say at their heads is there once, and what stands in comments for 9.0 alone is said.
sed 's/^\.version .*/.version 8.0/; s/^\.target .*/.target sm_90a/' "$work/estiba_compute80.ptx" >"$work/all.ptx"
if [ ${#own[@]} -gt 0 ]; then
	ptx sm_90a ptx80 "$work/own.ptx" "${own[@]}"
	cat "$work/own.ptx" >>"$work/all.ptx"
fi
awk '!/^\.(version|target|address_size|extern) / || !seen[$0]++' "$work/all.ptx" | sed 's|/\*9\.0: \([^*]*\)\*/|\1|' >"$work/sm90.ptx"
hash=$(sha256sum "$work/sm90.ptx" | cut -d' ' -f1)

# same FILE as what is in the folder, packed or not.
same() {
	case $1 in
	registers.txt) cmp -s "$work/$1" "$folder/$1" ;;
	*) gzip -dc "$folder/$1.gz" 2>/dev/null | cmp -s "$work/$1" - ;;
	esac
}
differ() {
	echo "kernels: $1; run make kernels and commit what it makes" >&2
	exit 1
}
if [ -n "$verify" ]; then
	same estiba_compute80.ptx || differ "$folder/estiba_compute80.ptx is not what the sources give"
	if ! ptxas=$(hack/cuda/ptxas.sh); then
		grep -q "^# PTX $hash\$" $folder/registers.txt || differ "the machine code in $folder was made of other PTX"
		echo "kernels: the assembler cannot be had here; the machine code is by its record of the sources' PTX" >&2
		exit 0
	fi
else
	ptxas=$(hack/cuda/ptxas.sh)
fi

for arch in 80 90; do
	"$ptxas" -v -arch=sm_${arch/90/90a} "$work/sm$arch.ptx" -o "$work/estiba_sm$arch.cubin" 2>"$work/sm$arch.txt" || { cat "$work/sm$arch.txt" >&2; exit 1; }
done

# What the assembler says of each kernel: registers, bytes of stack, of spills (stores and loads), of static shared memory.
{
	echo "# PTX $hash"
	echo "# Assembled by $("$ptxas" --version | sed -n 's/.*, V/ptxas /p'). Bytes but for threads, the most of a block, and registers of one."
	echo "# params threads | sm_80: registers stack spills shared | sm_90: the same | kernel"
	awk '
		FILENAME ~ /ptx$/ {
			if (match($0, /\.entry [A-Za-z0-9_]+/)) kernel = substr($0, RSTART + 7, RLENGTH - 7)
			if ($1 == ".param" && match($0, /_param_0\[[0-9]+\]/)) params[kernel] = substr($0, RSTART + 9, RLENGTH - 10)
			if ($1 == ".maxntid") { threads[kernel] = $2 + 0 }
			next
		}
		FNR == 1 { arch++ }
		/Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; names[kernel] = 1 }
		/bytes stack frame/ { stack[arch, kernel] = $1; spill[arch, kernel] = $5 + $9 }
		/: Used/ {
			shared = 0
			for (i = 1; i <= NF; i++) {
				if ($i ~ /^registers/) registers[arch, kernel] = $(i - 1)
				if ($i ~ /^smem/) shared = $(i - 2)
			}
			sh[arch, kernel] = shared
		}
		END {
			for (k in names) {
				printf "%4d %4d |", params[k], threads[k]
				for (a = 1; a <= 2; a++) printf " %3d %4d %4d %5d |", registers[a, k], stack[a, k], spill[a, k], sh[a, k]
				printf " %s\n", k
			}
		}' "$work/sm90.ptx" "$work/sm80.txt" "$work/sm90.txt" | sort -t'|' -k4
} >"$work/registers.txt"

bad=
while read -r spill80 spill90 kernel; do
	[ "$spill80" = 0 ] && [ "$spill90" = 0 ] && continue
	for s in "${spills[@]}"; do [ "${s%% *}" != "$kernel" ] || continue 2; done
	echo "kernels: $kernel spills registers to memory: $spill80 bytes on sm_80, $spill90 on sm_90; give a thread less to hold" >&2
	bad=1
done < <(grep -v '^#' "$work/registers.txt" | awk -F'|' '{ split($2, a, " "); split($3, b, " "); print a[3], b[3], $4 }')

if [ "$try" -gt 0 ]; then
	grep -v '^# PTX' "$work/registers.txt"
	[ -z "$bad" ]
	exit
fi
[ -z "$bad" ] || exit 1
for f in estiba_compute80.ptx estiba_sm80.cubin estiba_sm90.cubin registers.txt; do
	same "$f" && continue
	[ -z "$verify" ] || differ "$folder/$f is not what the sources give"
	case $f in
	registers.txt) cp "$work/$f" "$folder/$f" ;;
	*) gzip -9n <"$work/$f" >"$folder/$f.gz" ;;
	esac
done
