#!/usr/bin/env python3
"""Kills `fathom batch` with SIGKILL at random moments and starts it again until it is done: batch_kill.py FATHOM MODEL [--requests N] [--seed N].

Every request must have one reply in the end, and none two. Prints the counts.
"""
import argparse
import collections
import json
import random
import signal
import subprocess
import tempfile
from pathlib import Path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        asked, replies = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        lines = [{"custom_id": f"request-{i}", "method": "POST", "url": "/v1/completions",
                  "body": {"model": "stories", "prompt": f"Once upon a time {i} dogs", "max_tokens": rng.randrange(1, 200), "seed": i, "ignore_eos": True}}
                 for i in range(options.requests)]
        asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
        kills, done = 0, False
        while not done:
            process = subprocess.Popen([options.fathom, "--quiet", "batch", options.model, "-i", asked, "-o", replies], stderr=subprocess.PIPE, text=True)
            try:
                process.wait(rng.uniform(0.3, 2.0 + kills / 2))  # a busy machine must come to an end, too
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            if process.returncode != 0:
                raise SystemExit(f"FAILED: exit code {process.returncode}: {process.stderr.read()}")
            done = True
        counts = collections.Counter(json.loads(line)["custom_id"] for line in replies.read_text().splitlines())
    lost, doubled = options.requests - len(counts), sum(count > 1 for count in counts.values())
    print(f"batch killed {kills} times over {options.requests} requests: {sum(counts.values())} replies, {lost} lost, {doubled} doubled")
    if lost or doubled:
        raise SystemExit("FAILED")


if __name__ == "__main__":
    main()
