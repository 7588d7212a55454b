#!/usr/bin/env bash
# One static page about a run of the recipe: what every stage is worth on held-out questions, and the curves of all stages, drawn by `fathom plot`.
#   recipes/countdown/report.sh OUT          OUT: the folder of full.sh or tiny.sh; writes OUT/report.html
# Needs build/fathom (or FATHOM=path). The page holds everything it shows: no other file, no network.
set -euo pipefail
out=$(readlink -f "${1:?usage: report.sh OUT}")
fathom=${FATHOM:-$(dirname "$0")/../../build/fathom}
known=(base sft zero grpo control cold rl reject distill reward)
stages=()
for name in "${known[@]}"; do if [[ -s $out/$name/metrics.jsonl ]]; then stages+=("$name"); fi; done
[[ ${#stages[@]} -gt 0 ]] || { echo "report.sh: $out holds no stage with a metrics.jsonl" >&2 && exit 1; }

drawings=$(mktemp -d)
trap 'rm -rf "$drawings"' EXIT
draw() { "$fathom" plot "${@:2}" --out "$drawings/$1" --quiet >/dev/null; } # title, run ...
policies=()
for name in zero grpo control rl; do if [[ -s $out/$name/metrics.jsonl ]]; then policies+=("$out/$name"); fi; done
if [[ ${#policies[@]} -gt 0 ]]; then draw policies "${policies[@]}"; fi
for name in "${stages[@]}"; do draw "$name" "$out/$name"; done

number() { sed -n "s/.*\"$2\":\([-+0-9.e]*\).*/\1/p" "$1" | head -n 1; }
cell() { # file, key, digits or 1e
    local value=""
    if [[ -s $1 ]]; then value=$(number "$1" "$2"); fi
    if [[ -z $value ]]; then
        printf '<td>–</td>'
    elif [[ $3 == 1e ]]; then
        printf '<td>%.1e</td>' "$value"
    else
        printf '<td>%.*f</td>' "$3" "$value"
    fi
}
# The two scripts name their measurements differently.
measured() { for file in "$out/measure/$1$2.json" "$out/$1$2.json"; do if [[ -s $file ]]; then echo "$file" && return; fi; done; }

figures() { # folder, file ...
    local file
    for file in "${@:2}"; do
        if [[ -s $drawings/$1/$file ]]; then printf '<figure>\n' && cat "$drawings/$1/$file" && printf '</figure>\n'; fi
    done
}

page() {
    cat <<'HTML'
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Countdown: all stages</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1120px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } h2 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 1rem; } figure { margin: 0; } figure svg { width: 100%; height: auto; }
</style></head><body>
<h1>Countdown: all stages</h1>
<p>Held-out questions. pass@1: share of sampled answers that are right; pass@16: share of questions with a right one among 16. p: McNemar's exact test
against the first stage, on the first answer to each question.</p>
<table><tr><th>stage</th><th>pass@1</th><th>pass@16</th><th>mean reward</th><th>tokens</th><th>p</th></tr>
HTML
    local name
    for name in "${stages[@]}"; do
        [[ $name == reward ]] && continue
        printf '<tr><td>%s</td>' "$name"
        cell "$(measured "$name" "")" 'pass@1' 3
        cell "$(measured "$name" "")" 'pass@16' 3
        cell "$(measured "$name" "")" reward 3
        cell "$(measured "$name" "")" mean_length 1
        cell "$(measured "$name" -comparison)" p 1e
        printf '</tr>\n'
    done
    printf '</table>\n'
    local scored
    scored=$(measured reward "")
    if [[ -n $scored ]]; then
        printf '<p>Reward model: %.1f %% of %d held-out pairs (by length alone %.1f %%).</p>\n' "$(awk -v a="$(number "$scored" accuracy)" 'BEGIN { print 100 * a }')" \
            "$(number "$scored" pairs)" "$(awk -v a="$(number "$scored" length_only_accuracy)" 'BEGIN { print 100 * a }')"
    fi
    if [[ ${#policies[@]} -gt 0 ]]; then
        printf '<h2>Reinforcement learning</h2>\n<div class="figures">\n'
        figures policies reward.svg entropy.svg kl.svg completion_length.svg lr.svg grad_norm.svg
        printf '</div>\n'
    fi
    for name in "${stages[@]}"; do
        [[ " zero grpo control rl " == *" $name "* ]] && continue
        printf '<h2>%s</h2>\n<div class="figures">\n' "$name"
        figures "$name" loss.svg accuracy.svg lr.svg completion_length.svg balance.svg
        printf '</div>\n'
    done
    printf '</body></html>\n'
}
page >"$out/report.html.partial"
mv "$out/report.html.partial" "$out/report.html"
echo "$out/report.html"
