#!/usr/bin/env bash
# The tiny recipe on a CPU, every stage with a fixed seed: data, supervised fine-tuning, GRPO, the control with shuffled rewards,
# and what they are worth on held-out questions.
#   recipes/countdown/tiny.sh [SEED] [GRPO_STEPS]
# Needs build/fathom (or FATHOM=path). Leaves OUT (default runs/countdown-tiny/SEED) and prints one line of JSON per comparison.
# Fails unless GRPO gains (McNemar p < 0.01), the control does not, and sampler and trainer agreed to the bit.
set -euo pipefail
cd "$(dirname "$0")/../.."
seed=${1:-1} steps=${2:-60}
fathom=${FATHOM:-build/fathom}
out=${OUT:-runs/countdown-tiny/$seed}
mkdir -p "$out"
out=$(readlink -f "$out")
data=$out/data

if [[ ! -f $data/tokenizer/tokenizer.json ]]; then
    "$fathom" data countdown --out "$data" --count 2 --largest 40 --max-target 100 --train 1600 --valid 500 --correct 0.35 --seed "$seed"
    "$fathom" tokenizer train "$data/text.txt" --vocab-size 290 --out "$data/tokenizer"
fi
common=("job.seed=$seed" "model.tokenizer=$data/tokenizer")

"$fathom" sft recipes/countdown/sft-tiny.toml --resume auto "job.dir=$out/sft" "${common[@]}" "data.train=$data/sft.jsonl"
base=$(printf '%s\n' "$out"/sft/checkpoints/step-* | tail -n 1)

train_grpo() { # name, further settings
    "$fathom" grpo recipes/countdown/grpo-tiny.toml --resume auto "job.dir=$out/$1" "${common[@]}" "model.init_from=$base" \
        "data.train=$data/train.jsonl" "data.valid=$data/valid.jsonl" "training.steps=$steps" "${@:2}"
}
train_grpo grpo
train_grpo control grpo.shuffle_rewards=true

measure() { # name, checkpoint
    "$fathom" rejection-sample "$2" "$data/valid.jsonl" --reward countdown --max-new-tokens 12 --seed "$seed" --out "$out/$1.jsonl" --json
}
measure sft "$base"
for name in grpo control; do
    measure "$name" "$(printf '%s\n' "$out/$name"/checkpoints/step-* | tail -n 1)"
    "$fathom" compare-samples "$out/sft.jsonl" "$out/$name.jsonl" --json | tee "$out/$name-comparison.json"
done

number() { sed -n "s/.*\"$2\":\([-+0-9.e]*\).*/\1/p" "$out/$1-comparison.json"; }
gains() { awk -v before="$(number "$1" before)" -v after="$(number "$1" after)" -v p="$(number "$1" p)" 'BEGIN { exit !(after > before && p < 0.01) }'; }
gains grpo || { echo "tiny.sh: GRPO did not gain" >&2 && exit 1; }
if gains control; then echo "tiny.sh: the control with shuffled rewards gained, too" >&2 && exit 1; fi
if grep -o '"\(logp_diff_max\|routing_differences\)":[^,}]*' "$out/grpo/metrics.jsonl" | grep -v ':0\.0$'; then
    echo "tiny.sh: sampler and trainer disagreed" >&2 && exit 1
fi
