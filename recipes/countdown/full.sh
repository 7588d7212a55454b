#!/usr/bin/env bash
# The full recipe, stage by stage, as DeepSeek-R1 was made:
#   data     questions, demonstrations of which 40 % are right, pairs, a tokenizer
#   base     a mixture of experts of 30 M parameters learns these demonstrations: the form of an answer, and the art now and then
#   zero     R1-Zero: rewards alone, from the base model          control  the same with rewards dealt at random
#   cold     cold start: the base model learns right answers that the zero model gave
#   rl       reasoning RL from the cold start
#   reject   rejection sampling from it, and SFT of the base model on what is left
#   distill  a dense student of half the active parameters, by the RL model's probabilities
#   reward   a reward model from right answers and near misses
#   measure  pass@1 and pass@16 on held-out questions, McNemar's test     report  one page with all curves
#
#   recipes/countdown/full.sh [STAGE ...]        all of them without arguments
# Every stage goes on where it was stopped, and one that is done is skipped. FATHOM (build/fathom), DEVICE (auto), COMPUTE (bf16),
# OUT (runs/countdown) and SEED (1) may be set. SMALL=1 is a rehearsal: the same commands on a model of 0.2 M parameters, seconds a stage.
set -euo pipefail
cd "$(dirname "$0")/../.."
stages=" ${*:-data base zero control cold rl reject distill reward measure report} "
seed=${SEED:-1}
fathom=("${FATHOM:-build/fathom}" --device "${DEVICE:-auto}" --compute "${COMPUTE:-bf16}")
out=${OUT:-runs/countdown}
mkdir -p "$out/measure"
out=$(readlink -f "$out")
data=$out/data

# What a rehearsal changes: sizes, and how long everything takes.
model=() student=() base=() cold=() grpo=() distill=() reward=()
rules=(--count 3 --largest 30 --correct 0.4) questions=100000 held_out=1000 candidates=30000 answers=64 batch=512
if [[ ${SMALL:-0} != 0 ]]; then
    common=(training.dtype=f32 model.num_hidden_layers=2 model.num_attention_heads=4 model.qk_nope_head_dim=16 model.qk_rope_head_dim=16
        model.v_head_dim=16 model.kv_lora_rank=32)
    model=("${common[@]}" model.hidden_size=64 model.intermediate_size=192 model.moe_intermediate_size=64 model.n_routed_experts=8)
    student=("${common[@]}" model.hidden_size=48 model.intermediate_size=96 model.first_k_dense_replace=2)
    base=(training.steps=160 training.rows_per_batch=8 optimizer.lr=4e-3 checkpoint.every=40 metrics.valid_every=40 metrics.valid_batches=2)
    cold=(training.steps=20 training.rows_per_batch=8 optimizer.lr=1e-3 checkpoint.every=10 metrics.valid_every=10 metrics.valid_batches=2)
    grpo=(training.dtype=f32 training.steps=12 training.rows_per_batch=16 optimizer.lr=1e-3 checkpoint.every=6 metrics.valid_every=6
        metrics.valid_batches=50 grpo.prompts_per_step=16 grpo.num_generations=8 grpo.max_completion_length=16 grpo.max_sequences=128)
    distill=(training.steps=120 training.rows_per_batch=16 optimizer.lr=4e-3 lr_scheduler.warmup_steps=10 checkpoint.every=60
        distill.prompts_per_step=48 distill.max_completion_length=16)
    reward=(training.dtype=f32 training.steps=40 training.rows_per_batch=16 optimizer.lr=2e-3 checkpoint.every=20 metrics.valid_every=20
        reward.pairs_per_step=24)
    rules=(--count 2 --largest 40 --correct 0.4) questions=800 held_out=200 candidates=800 answers=16 batch=256
fi

wants() { [[ $stages == *" $1 "* ]]; }
last() { printf '%s\n' "$out/$1"/checkpoints/step-* | tail -n 1; }
# The checkpoint with the lowest validation loss among those that were kept.
best() {
    local steps step folder
    steps=$(sed -n 's/.*"step":\([0-9]*\),.*"val_loss":\([-+0-9.e]*\),.*/\2 \1/p' "$out/$1/metrics.jsonl" | sort -g | cut -d ' ' -f 2)
    for step in $steps; do
        folder=$out/$1/checkpoints/step-$(printf '%08d' "$step")
        if [[ -d $folder ]]; then echo "$folder" && return; fi
    done
    echo "full.sh: no checkpoint with a validation loss in $out/$1" >&2
    return 1
}
# train VERB NAME CONFIG SETTING ...: verb may be two words.
train() {
    local words
    read -ra words <<<"$1"
    "${fathom[@]}" "${words[@]}" "recipes/countdown/$3.toml" --resume auto "job.dir=$out/$2" "job.seed=$seed" "model.tokenizer=$data/tokenizer" "${@:4}"
}
# sample FILE CHECKPOINT QUESTIONS OPTION ...: FILE.jsonl gets answers with their rewards, FILE.json the figures.
sample() {
    [[ -s $1.json ]] && return
    "${fathom[@]}" rejection-sample "$2" "$3" --reward countdown --max-new-tokens "$answers" --batch "$batch" --seed "$seed" --out "$1.jsonl" \
        --json "${@:4}" | tee "$1.json"
}
begin() { started=$SECONDS && echo "== $1" >&2; }
end() { echo "{\"stage\":\"$1\",\"seconds\":$((SECONDS - started))}" | tee -a "$out/measure/time.jsonl" >&2; }

if wants data && [[ ! -f $data/tokenizer/tokenizer.json ]]; then
    begin data
    "${fathom[@]}" data countdown --out "$data" "${rules[@]}" --train "$questions" --valid "$held_out" --seed "$seed"
    head -n 20000 "$data/text.txt" >"$data/tokenizer-text.txt"
    "${fathom[@]}" tokenizer train "$data/tokenizer-text.txt" --vocab-size 320 --out "$data/tokenizer"
    end data
fi
if wants base; then
    begin base
    train sft base sft "data.train=$data/sft.jsonl" "data.valid=$data/sft-valid.jsonl" "${model[@]}" "${base[@]}"
    end base
fi
for name in zero control; do
    if wants "$name"; then
        begin "$name"
        train grpo "$name" grpo "model.init_from=$(best base)" "data.train=$data/train.jsonl" "data.valid=$data/valid.jsonl" "${grpo[@]}" \
            "grpo.shuffle_rewards=$([[ $name == control ]] && echo true || echo false)"
        end "$name"
    fi
done
if wants cold; then
    begin cold
    sample "$data/cold" "$(last zero)" "$data/train.jsonl" --limit "$((candidates / 4))" -n 4 --best 1
    # Three passes over these few answers: more would learn them by heart and leave nothing to explore.
    train sft cold sft "model.init_from=$(best base)" "data.train=$data/cold.jsonl" "data.valid=$data/sft-valid.jsonl" \
        optimizer.lr=2e-4 lr_scheduler.warmup_steps=5 training.steps=30 checkpoint.every=10 metrics.valid_every=10 "${model[@]}" "${cold[@]}"
    end cold
fi
if wants rl; then
    begin rl
    train grpo rl grpo "model.init_from=$(last cold)" "data.train=$data/train.jsonl" "data.valid=$data/valid.jsonl" "${grpo[@]}"
    end rl
fi
if wants reject; then
    begin reject
    sample "$data/best" "$(last rl)" "$data/train.jsonl" --limit "$candidates" -n 4 --best 1
    train sft reject sft "model.init_from=$(best base)" "data.train=$data/best.jsonl" "data.valid=$data/sft-valid.jsonl" \
        optimizer.lr=2e-4 training.steps=300 checkpoint.every=100 metrics.valid_every=100 "${model[@]}" "${cold[@]}"
    end reject
fi
if wants distill; then
    begin distill
    train distill distill distill "distill.teacher=$(last rl)" "data.train=$data/best.jsonl" "${student[@]}" "${distill[@]}"
    end distill
fi
if wants reward; then
    begin reward
    train "reward train" reward reward "model.init_from=$(best base)" "data.train=$data/pairs.jsonl" "data.valid=$data/pairs-valid.jsonl" "${reward[@]}"
    "${fathom[@]}" reward score "$(last reward)" "$data/pairs-valid.jsonl" --json | tee "$out/measure/reward.json"
    end reward
fi
if wants measure; then
    begin measure
    for name in base zero control cold rl reject distill; do
        [[ -d $out/$name ]] || continue
        checkpoint=$(last "$name")
        if [[ $name == base ]]; then checkpoint=$(best base); fi
        sample "$out/measure/$name" "$checkpoint" "$data/valid.jsonl" -n 16
        [[ $name == base ]] || "${fathom[@]}" compare-samples "$out/measure/base.jsonl" "$out/measure/$name.jsonl" --json | tee "$out/measure/$name-comparison.json"
    done
    end measure
fi
if wants report; then FATHOM=${fathom[0]} recipes/countdown/report.sh "$out"; fi
