#!/usr/bin/env python3
"""Kill a training run with SIGKILL at random moments, resume it, and compare its checkpoints with those of an undisturbed run.

usage: soak_resume.py BINARY [--rounds N] [--steps N]

A round is one training of tests/data/resume.toml that was killed until it finished; all its checkpoints must be byte-identical to
the reference's.
"""
import argparse
import hashlib
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "tests/data/resume.toml"


def digests(run):
    """checkpoint name -> digest of its files' names and bytes"""
    result = {}
    for folder in sorted((run / "checkpoints").glob("step-*")):
        digest = hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
        result[folder.name] = digest.hexdigest()
    return result


def command(binary, run, steps):
    return [binary, "train", str(CONFIG), f"job.dir={run}", f"training.steps={steps}", "--resume", "auto", "--quiet"]


def killed_run(binary, run, steps, seconds, rng):
    kills = 0
    while True:
        process = subprocess.Popen(command(binary, run, steps), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            # The later attempts get more time, so that every run ends.
            _, errors = process.communicate(timeout=rng.uniform(0.02, 0.6) * seconds * (1 + kills / 10))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        if process.returncode != 0:
            sys.exit(f"resumed run failed with code {process.returncode} after {kills} kills: {errors.decode()}")
        return kills


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=lambda p: str(pathlib.Path(p).resolve()))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    rng = random.Random(time.time_ns())
    with tempfile.TemporaryDirectory() as folder:
        reference = pathlib.Path(folder) / "reference"
        began = time.monotonic()
        subprocess.run(command(arguments.binary, reference, arguments.steps), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds, expected, total = time.monotonic() - began, digests(reference), 0
        if not expected:
            sys.exit("the undisturbed run left no checkpoint")
        for round_number in range(arguments.rounds):
            run = pathlib.Path(folder) / f"round-{round_number}"
            kills = killed_run(arguments.binary, run, arguments.steps, seconds, rng)
            total += kills
            if digests(run) != expected:
                sys.exit(f"round {round_number}: after {kills} kills the checkpoints differ")
    print(f"{arguments.rounds} runs, {total} kills, {len(expected)} checkpoints each, all byte-identical")


if __name__ == "__main__":
    main()
