#!/usr/bin/env bash
# The server beside raw decoding on a GPU: bench/serve_gpu.sh FOLDER [CONFIG], FOLDER with fathom and libfathom_cuda.so (and lib/, as
# `./run gpu-bundle` makes it); run in the repository root. Ids are those of models/stories, and so would be its repetition penalty
# of 1.1, for which every step's logits go to the host: it is switched off.
# Prints one JSON object: raw decode at 128 x 512, the server at 128 concurrent requests (input 512, output 128), then at 50 and 80 %
# of the measured rate. FATHOM_SERVE_DEVICE=cpu and the small numbers below rehearse it without a GPU.
set -euo pipefail
bin=$1
config=${2:-bench/configs/v2-lite.json}
device=${FATHOM_SERVE_DEVICE:-cuda} clients=${FATHOM_SERVE_CLIENTS:-128} input=${FATHOM_SERVE_INPUT:-512} output=${FATHOM_SERVE_OUTPUT:-128}
read -ra extra <<<"${FATHOM_SERVE_OPTIONS:-}"
# Waves: requests a client. The first fills the batch and the last empties it: of 4 that costs 0.5 % with steps of 8192 rows and 8 % with
# 640 (bench/serve_schedule.py). FATHOM_SERVE_RAW: the raw run's JSON that another run has left at its FATHOM_SERVE_KEEP_RAW.
waves=${FATHOM_SERVE_WAVES:-12} seconds=${FATHOM_SERVE_SECONDS:-25}
work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
[[ -d $bin/lib ]] && export LD_LIBRARY_PATH=$bin/lib:$bin:${LD_LIBRARY_PATH:-}
common=(--device "$device")
[[ $device == cpu ]] || common+=(--compute bf16)
weights=(--random-config "$config" --dtype bf16 --cache-type bf16)

began=$SECONDS
if [[ -n ${FATHOM_SERVE_RAW:-} ]]; then
    cp "$FATHOM_SERVE_RAW" "$work/raw.json"
else
    "$bin/fathom" "${common[@]}" --quiet bench decode "${weights[@]}" --batch "$clients" --depth "$input" \
        --max-new-tokens $((output - 2)) --repetitions 2 --json >"$work/raw.json"
fi
[[ -z ${FATHOM_SERVE_KEEP_RAW:-} ]] || cp "$work/raw.json" "$FATHOM_SERVE_KEEP_RAW"
echo "raw decode done after $((SECONDS - began)) s" >&2

"$bin/fathom" "${common[@]}" serve "${weights[@]}" --tokenizer models/stories --port 0 --no-log-requests --repetition-penalty 1 --max-num-seqs "$clients" \
    --cache-tokens $((clients * (input + output + 64) * 5 / 4)) "${extra[@]}" 2>"$work/serve.log" &
server=$!
port=
for ((i = 0; i < 1200; ++i)); do
    port=$(sed -nE 's|.*http://127\.0\.0\.1:([0-9]+)/ .*|\1|p' "$work/serve.log")
    [[ -n $port ]] && break
    kill -0 "$server" 2>/dev/null || { cat "$work/serve.log" >&2 && exit 1; }
    sleep 0.1
done
echo "server ready after $((SECONDS - began)) s" >&2

# bench NAME PROMPTS OPTION...
bench() {
    local name=$1 prompts=$2
    shift 2
    "$bin/fathom" --quiet bench serve --port "$port" --json --ignore-eos --temperature 0 --num-prompts "$prompts" --random-input-len "$input" \
        --random-output-len "$output" "$@" >"$work/$name.json"
    echo "$name done after $((SECONDS - began)) s" >&2
}
value() { sed -nE "s/.*\"$2\": ([0-9.e+-]+),?/\1/p" "$work/$1.json" | head -1; }

bench warm "$clients" --max-concurrency "$clients" --seed 1
bench full $((waves * clients)) --max-concurrency "$clients" --seed 2
capacity=$(value full request_throughput)
for share in 50 80; do
    rate=$(awk -v c="$capacity" -v s="$share" 'BEGIN { print c * s / 100 }')
    prompts=$(awk -v r="$rate" -v t="$seconds" 'BEGIN { n = int(r * t); print (n < 8 ? 8 : n) }')
    bench "load$share" "$prompts" --request-rate "$rate" --seed "$share"
done
curl -sf "http://127.0.0.1:$port/metrics" >"$work/metrics" || true
kill -TERM "$server" && wait "$server" || [[ $? -eq 130 ]] || echo "the server ended with an error" >&2
server=

ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf("%.4f", (b > 0 ? a / b : 0)) }'; }
raw=$(value raw tokens_per_second)
printf '{"date": "%s", "device": "%s", "clients": %d, "input": %d, "output": %d,\n' "$(date -u +%FT%TZ)" \
    "$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 || true)" "$clients" "$input" "$output"
printf '"served_over_raw": %s, "bound": 0.80, "decode_only_over_raw": %s,\n' "$(ratio "$(value full output_throughput)" "$raw")" \
    "$(ratio "$(awk -v n="$clients" -v t="$(value full median_itl_ms)" 'BEGIN { print (t > 0 ? 1000 * n / t : 0) }')" "$raw")"
printf '"engine": {%s},\n' "$(awk '/^fathom_(engine_steps_total|engine_rows_total|engine_busy_seconds_total|num_preemptions_total)/ { sub(/\{.*\}/, "", $1); printf "%s\"%s\": %s", n++ ? ", " : "", $1, $2 }' "$work/metrics" 2>/dev/null)"
for part in raw warm full load50 load80; do
    printf '"%s": %s%s\n' "$part" "$(cat "$work/$part.json")" "$([[ $part == load80 ]] || echo ,)"
done
echo '}'
