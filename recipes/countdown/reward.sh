#!/usr/bin/env bash
# The reward model of the tiny recipe: trained on right answers against near misses of the same length, measured on held-out pairs.
#   recipes/countdown/reward.sh [SEED] [STEPS]
# Needs build/fathom (or FATHOM=path) and what recipes/countdown/tiny.sh leaves: OUT (default runs/countdown-tiny/SEED) with data
# and the SFT checkpoint. Prints one line of JSON. Fails below 75 % pairwise accuracy, or where lengths alone give more than 55 %.
set -euo pipefail
cd "$(dirname "$0")/../.."
seed=${1:-1} steps=${2:-600}
fathom=${FATHOM:-build/fathom}
out=$(readlink -f "${OUT:-runs/countdown-tiny/$seed}")
data=$out/data
base=$(printf '%s\n' "$out"/sft/checkpoints/step-* | tail -n 1)

"$fathom" reward train recipes/countdown/reward-tiny.toml --resume auto "job.dir=$out/reward" "job.seed=$seed" "model.init_from=$base" \
    "data.train=$data/pairs.jsonl" "data.valid=$data/pairs-valid.jsonl" "training.steps=$steps"
model=$(printf '%s\n' "$out"/reward/checkpoints/step-* | tail -n 1)
"$fathom" reward score "$model" "$data/pairs-valid.jsonl" --out "$out/scored.jsonl" --json | tee "$out/reward.json"

number() { sed -n "s/.*\"$1\":\([-+0-9.e]*\).*/\1/p" "$out/reward.json"; }
awk -v a="$(number accuracy)" -v l="$(number length_only_accuracy)" 'BEGIN { exit !(a >= 0.75 && l <= 0.55) }' ||
    { echo "reward.sh: accuracy $(number accuracy) (at least 0.75), by length alone $(number length_only_accuracy) (at most 0.55)" >&2 && exit 1; }
