#!/usr/bin/env bash
# Clients that nobody here wrote, against `fathom serve` with the bundled model.
#   tools/check_clients.sh FATHOM [CLIENT...]
# Clients: openai anthropic prometheus langchain_openai langchain_deepseek llama_index lm_eval schemathesis (each in its own pinned environment under
# build/venvs), promtool wrk hey curl (Debian packages), page (Playwright and Chromium). Default: all. Prints a line per client.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
[[ $# -ge 1 ]] || { echo "usage: $0 FATHOM [CLIENT...]" >&2 && exit 2; }
readonly kFathom=$1
shift
readonly kAll=(openai anthropic prometheus langchain_openai langchain_deepseek llama_index lm_eval schemathesis promtool wrk hey curl page)
readonly kModel=models/stories kVenvs=${FATHOM_VENVS:-build/venvs}
work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
# Nothing of a client's may look for the network beyond the server.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HOME=$work/hf NO_COLOR=1 ANONYMIZED_TELEMETRY=False

# A client's environment, made anew when its pins change.
venv() {
    local pins=tests/clients/requirements/$1.txt folder=$kVenvs/$1
    if ! cmp -s "$pins" "$folder/pins"; then
        rm -rf "$folder"
        python3 -m venv "$folder"
        "$folder/bin/pip" install -q --disable-pip-version-check -r "$pins"
        cp "$pins" "$folder/pins"
    fi
}

# start_server [OPTION...]: sets `server` and `base`.
start_server() {
    "$kFathom" serve "$kModel" --port 0 --chat-format v3 --no-log-requests "$@" 2>"$work/server.log" &
    server=$!
    port=
    for _ in $(seq 300); do
        port=$(sed -n 's#.*http://127.0.0.1:\([0-9]*\)/ .*#\1#p' "$work/server.log")
        [[ -z $port ]] || break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    [[ -n $port ]] || { cat "$work/server.log" >&2 && exit 1; }
    base=http://127.0.0.1:$port
}

check_lm_eval() {
    "$kFathom" --quiet eval choice "$kModel" tests/clients/lm_eval/items.jsonl --output "$work/items.jsonl" >/dev/null
    "$kVenvs/lm_eval/bin/lm_eval" run --model local-completions --tasks fathom_choice --include_path tests/clients/lm_eval \
        --model_args "model=stories,base_url=$base/v1/completions,tokenizer_backend=remote,num_concurrent=4,max_retries=1" \
        --log_samples --output_path "$work/lm_eval" >"$work/lm_eval.log" 2>&1 || { tail -20 "$work/lm_eval.log" && return 1; }
    "$kVenvs/lm_eval/bin/python" tests/clients/check_lm_eval.py "$(find "$work/lm_eval" -name 'samples_*.jsonl' | head -1)" "$work/items.jsonl"
}

# Every operation, against a server of its own whose answers are short: what is made up asks for as much as the schema allows, 128 answers
# among it. --max-time ends the search (a run that it ends passes). Not the phase `coverage`: on CPython 3.11 hypothesis ends in a SystemError of the
# interpreter's own ("AST constructor recursion depth mismatch") while it describes our nested schemas.
check_schemathesis() {
    local status=0
    start_server --max-model-len 128
    "$kVenvs/schemathesis/bin/schemathesis" run "$base/openapi.json" --checks not_a_server_error --max-examples "${FATHOM_EXAMPLES:-30}" \
        --phases examples,fuzzing --workers 4 --no-shrink --max-time "${FATHOM_SCHEMATHESIS_SECONDS:-240}" \
        --generation-deterministic --request-timeout 60 >"$work/schemathesis.log" 2>&1 || status=$?
    kill "$server"
    [[ $status -eq 0 ]] || { tail -60 "$work/schemathesis.log" && return 1; }
    grep -E "[0-9]+ generated, [0-9]+ passed" "$work/schemathesis.log" || tail -1 "$work/schemathesis.log"
}

# Every family of metrics; promtool's advice against colons is about names that a server does not choose: vLLM's.
check_promtool() {
    local advice
    curl -sf "$base/metrics" >"$work/metrics"
    advice=$(promtool check metrics <"$work/metrics" 2>&1 | grep -v '^vllm:.*should not contain' || true)
    [[ -z $advice ]] || { printf '%s\n' "$advice" && return 1; }
    echo "$(grep -c '^# TYPE' "$work/metrics") families without a complaint"
}

# Neither socket errors nor replies other than 200, for a cheap path and for answers.
check_wrk() {
    cat >"$work/post.lua" <<'LUA'
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"prompt": "Once upon a time", "max_tokens": 4, "ignore_eos": true}'
LUA
    local log
    for log in health post; do
        local options=(-t 2 -c 64 -d 5s --timeout 20s --latency)
        if [[ $log == post ]]; then
            wrk "${options[@]}" -s "$work/post.lua" "$base/v1/completions" >"$work/wrk-$log"
        else
            wrk "${options[@]}" "$base/health" >"$work/wrk-$log"
        fi
        ! grep -E 'Socket errors|Non-2xx' "$work/wrk-$log" || { cat "$work/wrk-$log" && return 1; }
        echo "$log: $(awk '/Requests\/sec/ { print $2 " requests/s" } /99%/ { printf "p99 %s, ", $2 }' "$work/wrk-$log")"
    done
}

# All answers are 200, for a cheap path and for answers.
check_hey() {
    local url options
    for url in "$base/health" "$base/v1/completions"; do
        options=(-c 50 -n 2000)
        [[ $url == */health ]] || options=(-c 50 -n 500 -t 120 -m POST -T application/json -d '{"prompt": "Once upon a time", "max_tokens": 4, "ignore_eos": true}')
        hey "${options[@]}" "$url" >"$work/hey"
        [[ $(awk '/\[[0-9]+\].*responses/ { print $1, $2 }' "$work/hey") == "[200] ${options[3]}" ]] || { cat "$work/hey" && return 1; }
        echo "${url##*/}: $(awk '/Requests\/sec/ { print $2 " requests/s" }' "$work/hey")"
    done
}

check_curl() {
    local text body='{"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0'
    text=$(curl -sfN "$base/v1/completions" -d "$body, \"stream\": true}")
    [[ $text == *'data: [DONE]'* && $(grep -c '^data: {' <<<"$text") -eq 8 ]] || { echo "a stream of 8 tokens: $text" && return 1; }
    [[ $(curl -s -o /dev/null -w '%{http_code}' "$base/v1/completions" -d '{"prompt": 1.5}') == 400 ]] || { echo "a bad prompt" && return 1; }
    [[ $(curl -s -o /dev/null -w '%{http_code}' "$base/nothing") == 404 ]] || { echo "a bad path" && return 1; }
    [[ $(curl -sf "$base/health" --next -sf "$base/version" | grep -c ok) -ge 1 ]] || { echo "two requests on a connection" && return 1; }
    echo "stream, errors and a kept connection"
}

check_client() {
    case $1 in
        openai | anthropic | prometheus | langchain_* | llama_index) "$kVenvs/$1/bin/python" tests/clients/check_clients.py "$base" "$1" ;;
        page) "$kVenvs/page/bin/python" tests/clients/check_page.py "$base" "${FATHOM_SCREENSHOTS:-build/screenshots}" ;;
        lm_eval) check_lm_eval ;;
        schemathesis) check_schemathesis ;;
        promtool) check_promtool ;;
        wrk) check_wrk ;;
        hey) check_hey ;;
        curl) check_curl ;;
    esac
}

clients=("$@")
[[ $# -gt 0 ]] || clients=("${kAll[@]}")
for client in "${clients[@]}"; do
    [[ " ${kAll[*]} " == *" $client "* ]] || { echo "unknown client \"$client\"; there are: ${kAll[*]}" >&2 && exit 2; }
    [[ ! -f tests/clients/requirements/$client.txt ]] || venv "$client"
done
start_server
failed=0
for client in "${clients[@]}"; do
    began=$SECONDS result=pass
    # A subshell with `set -e`, which an `if` or `||` around the call would switch off.
    set +e
    (set -e && check_client "$client") >"$work/$client.out" 2>&1
    status=$?
    set -e
    [[ $status -eq 0 ]] || result=FAIL
    [[ $result == pass ]] || { failed=1 && cat "$work/$client.out"; }
    printf '%-4s  %-12s %4d s  %s\n' "$result" "$client" $((SECONDS - began)) "$([[ $result == FAIL ]] || tail -1 "$work/$client.out")"
done
kill "$server"
wait "$server" || [[ $? -eq 130 ]] || { echo "FAIL  the server after SIGTERM" && failed=1; }
server=
exit "$failed"
