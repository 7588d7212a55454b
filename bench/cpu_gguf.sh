#!/usr/bin/env bash
# Decoding and prefilling GGUF files of a DeepSeek shape with random weights, ours and the peers' in turn, so that all meet the same
# machine: bench/results/cpu-gguf-DATE.tsv. Wants an otherwise idle machine and ../shared/bench/make_random_gguf.py (Python with numpy).
# usage: bench/cpu_gguf.sh [fathom binary]
#   SHAPE=ds-small TYPES="bf16 q8_0 q4_0 q4_K" ROUNDS=3 THREADS=2
#   LLAMA_BENCH=path IK_LLAMA_BENCH=path     the peers' llama-bench; left out where not given
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

fathom=${1:-build/fathom}
shape=${SHAPE:-ds-small} rounds=${ROUNDS:-3} threads=${THREADS:-$(nproc)}
read -r -a types <<<"${TYPES:-bf16 q8_0 q4_0 q4_K}"
files=${FILES:-/tmp/fathom-gguf}
out=bench/results/cpu-gguf-$(date -u +%Y-%m-%d).tsv
maker=../shared/bench/make_random_gguf.py
[[ -f $maker ]] || { printf 'cpu_gguf: error: %s is not there\n' "$maker" >&2 && exit 1; }
mkdir -p "$files" bench/results

# tokens/s of one run: ours as JSON, a peer's as JSON lines of llama-bench.
ours() {
    local run=$1 file=$2 && shift 2
    "$fathom" bench "$run" "$file" --threads "$threads" --repetitions 1 --cache-type bf16 --json --quiet "$@" |
        python3 -c 'import json, sys; r = json.load(sys.stdin); print(r["tokens_per_second"], r["read_gb_per_s"], r["machine_read_gb_per_s"])'
}
peer() {
    local binary=$1 file=$2 && shift 2
    "$binary" -m "$file" -t "$threads" -r 1 -o json "$@" 2>/dev/null |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["avg_ts"], "", "")'
}

printf 'type\trun\tprogram\tround\ttokens_per_s\tread_gb_per_s\tmachine_read_gb_per_s\n' >"$out"
record() { # type run program round figures
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "${5// /$'\t'}" | tee -a "$out"
}
for type in "${types[@]}"; do
    file=$files/$shape-$type.gguf
    [[ -f $file ]] || python3 "$maker" --shape "$shape" --type "$type" --out "$file" >&2
    for ((round = 1; round <= rounds; ++round)); do
        record "$type" decode fathom "$round" "$(ours decode "$file" --max-new-tokens 32)"
        record "$type" decode-4096 fathom "$round" "$(ours decode "$file" --max-new-tokens 16 --depth 4096)"
        record "$type" prefill-512 fathom "$round" "$(ours prefill "$file" --prompt-tokens 512)"
        for name in LLAMA_BENCH IK_LLAMA_BENCH; do
            [[ -n ${!name:-} ]] || continue
            best=()
            [[ $name == IK_LLAMA_BENCH ]] && best=(-rtr 1 -fmoe 1 -mla 3 -fa 1)
            record "$type" decode "$name" "$round" "$(peer "${!name}" "$file" -p 0 -n 32 "${best[@]}")"
            record "$type" prefill-512 "$name" "$round" "$(peer "${!name}" "$file" -p 512 -n 0 "${best[@]}")"
        done
    done
done

python3 - "$out" <<'PYTHON'
import csv
import statistics
import sys

rates = {}
for row in csv.DictReader(open(sys.argv[1]), delimiter="\t"):
    rates.setdefault((row["type"], row["run"]), {}).setdefault(row["program"], []).append(float(row["tokens_per_s"]))
for (kind, run), programs in rates.items():
    median = {name: statistics.median(values) for name, values in programs.items()}
    peers = [value for name, value in median.items() if name != "fathom"]
    against = f"  {median['fathom'] / max(peers):.2f} x the best peer" if peers else ""
    print(f"{kind:6}{run:13}" + "  ".join(f"{name} {value:.1f}" for name, value in median.items()) + against)
PYTHON
printf 'written: %s\n' "$out"
