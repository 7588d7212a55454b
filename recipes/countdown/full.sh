#!/usr/bin/env bash
# The full recipe, stage by stage: recipes/countdown/full.sh [data|sft|grpo|control|reject|distill|measure|all]
# Every stage resumes where it stopped and takes at most some minutes on one H100. FATHOM=path and DEVICE=cuda may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
stage=${1:-all}
fathom=("${FATHOM:-build/fathom}" --device "${DEVICE:-auto}")
out=runs/countdown
data=$out/data

last() { printf '%s\n' "$out/$1"/checkpoints/step-* | tail -n 1; }
# The checkpoint with the lowest validation loss among those that were kept.
best_sft() {
    local steps step folder
    steps=$(sed -n 's/.*"step":\([0-9]*\),.*"val_loss":\([-+0-9.e]*\),.*/\2 \1/p' "$out/sft/metrics.jsonl" | sort -g | cut -d ' ' -f 2)
    for step in $steps; do
        folder=$out/sft/checkpoints/step-$(printf '%08d' "$step")
        if [[ -d $folder ]]; then echo "$folder" && return; fi
    done
    echo "no checkpoint with a validation loss in $out/sft" >&2
    return 1
}
wants() { [[ $stage == all || $stage == "$1" ]]; }

if wants data && [[ ! -f $data/tokenizer/tokenizer.json ]]; then
    "${fathom[@]}" data countdown --out "$data" --count 3 --largest 30 --train 40000 --valid 1000 --correct 0.4 --seed 1
    "${fathom[@]}" data countdown --out "$out/held-out" --count 3 --largest 30 --train 2000 --valid 1 --correct 0.4 --seed 2
    "${fathom[@]}" tokenizer train "$data/text.txt" --vocab-size 320 --out "$data/tokenizer"
fi
if wants sft; then
    "${fathom[@]}" sft recipes/countdown/sft.toml --resume auto "data.valid=$PWD/$out/held-out/sft.jsonl"
fi
if wants grpo; then
    "${fathom[@]}" grpo recipes/countdown/grpo.toml --resume auto "model.init_from=$PWD/$(best_sft)"
fi
if wants control; then
    "${fathom[@]}" grpo recipes/countdown/grpo.toml --resume auto "model.init_from=$PWD/$(best_sft)" "job.dir=$out/control" grpo.shuffle_rewards=true
fi
if wants reject; then
    "${fathom[@]}" rejection-sample "$(last grpo)" "$data/train.jsonl" --limit 10000 -n 8 --best 1 --reward countdown --max-new-tokens 64 --batch 512 --out "$data/best.jsonl"
fi
if wants distill; then
    "${fathom[@]}" distill recipes/countdown/distill.toml --resume auto "distill.teacher=$PWD/$(last grpo)"
fi
if wants measure; then
    for name in sft grpo control distill; do
        checkpoint=$(last "$name")
        if [[ $name == sft ]]; then checkpoint=$(best_sft); fi
        "${fathom[@]}" rejection-sample "$checkpoint" "$data/valid.jsonl" --reward countdown -n 16 --max-new-tokens 64 --batch 512 --out "$out/$name.jsonl" --json
    done
    "${fathom[@]}" compare-samples "$out/sft.jsonl" "$out/grpo.jsonl" --json
    "${fathom[@]}" compare-samples "$out/sft.jsonl" "$out/control.jsonl" --json
    "${fathom[@]}" plot "$out/grpo" || true
fi
