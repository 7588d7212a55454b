#!/usr/bin/env bash
# The end-to-end figures of docs/performance.md on this machine: bench/results/cpu-quick-DATE.json. About five minutes; wants an
# otherwise idle machine. usage: bench/cpu_quick.sh [fathom binary] [further options of every run, e.g. --threads 2]
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

fathom=${1:-build/fathom}
shift || true
out=bench/results/cpu-quick-$(date -u +%Y-%m-%d).json
mkdir -p bench/results
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bench() { "$fathom" bench "$@" --json --quiet; }

{
    printf '{"date": "%s", "machine": ' "$(date -u +%FT%TZ)"
    "$fathom" doctor --json --quiet
    printf ', "runs": [\n'
    # 1.1 GB of bf16 weights, 0.5 GB of them read per token: decoding is bound by memory.
    bench decode --random-config bench/configs/decode-1gb.json --dtype bf16 --max-new-tokens 16 "$@"
    printf ',\n'
    bench decode --random-config bench/configs/decode-1gb.json --dtype bf16 --batch 8 --max-new-tokens 8 "$@"
    printf ',\n'
    bench prefill --random-config bench/configs/decode-1gb.json --dtype bf16 --prompt-tokens 512 --repetitions 3 "$@"
    printf ',\n'
    bench train --random-config bench/configs/stories.json --batch 4 --sequence-length 1024 --steps 2 "$@"
    printf ',\n'
    bench train --random-config bench/configs/train-512.json --batch 4 --sequence-length 512 --repetitions 3 "$@"
    printf ']}\n'
} >"$work/report.json"

python3 - "$work/report.json" "$out" <<'PYTHON'
import json
import sys

report = json.load(open(sys.argv[1]))
json.dump(report, open(sys.argv[2], "w"), indent=1)
for run in report["runs"]:
    print(f"{run['run']:<8}{run['model'].split('/')[-1]:<18}{run['tokens_per_second']:>9.1f} tokens/s "
          f"{100 * run['bandwidth_fraction']:6.1f} % of read bandwidth {100 * run['matrix_fraction']:6.1f} % of matrix rate")
PYTHON
printf 'written: %s\n' "$out"
