#!/usr/bin/env python3
"""lm-eval's log-likelihoods through the server against `fathom eval choice`: check_lm_eval.py SAMPLES.jsonl ITEMS.jsonl.

SAMPLES is what `lm_eval --log_samples` wrote, ITEMS what `fathom eval choice --output` did. They must agree to 1e-4.
"""
import json
import sys

samples = {line["doc_id"]: line for line in map(json.loads, open(sys.argv[1], encoding="utf-8"))}
items = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
assert len(items) == len(samples) > 0, (len(items), len(samples))
worst, compared = 0.0, 0
for item in items:
    theirs = [float(choice[0][0]) for choice in samples[item["item"]]["resps"]]
    assert len(theirs) == len(item["logprobs"]), item
    for a, b in zip(theirs, item["logprobs"]):
        worst, compared = max(worst, abs(a - b)), compared + 1
    assert (samples[item["item"]]["acc"] == 1) == item["correct"], item
if worst > 1e-4:
    raise SystemExit(f"FAILED: log-likelihoods differ by {worst:.2e}")
print(f"lm_eval: {compared} log-likelihoods, at most {worst:.1e} apart")
