#!/usr/bin/env python3
"""Kills `fathom quantize` with SIGKILL at random moments and starts it again until it is done: quantize_kill.py FATHOM MODEL [--rounds N] [--seed N].

Each job is killed and gone on with until it ends, and must leave the bytes of an undisturbed run and nothing else. Prints the counts.
"""
import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

SHARD = 1 << 18  # of the bundled model's 4 to 8 MB, so that there is much to go on from


def digest(path):
    """Names and content of a file, or of all files of a folder, hidden ones among them."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name if path.is_dir() else "file": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def leftovers(path):
    return [file.name for file in path.parent.iterdir() if file != path and file.name.startswith(path.name)]


def kill_until_done(command, out, expected, longest, rng):
    """Kills and, of them, those behind which something was left to go on from."""
    kills = resumed = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(rng.uniform(0, longest * (1.2 + kills / 4)))  # a busy machine must come to an end, too
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            resumed += Path(f"{out}.partial.job").exists() or any(name.endswith("safetensors.incoming") for name in (os.listdir(out) if out.is_dir() else []))
            continue
        if out.is_dir() and digest(out) == expected:  # killed, or asked again, behind the last thing that it does
            return kills, resumed
        if process.returncode != 0:
            raise SystemExit(f"FAILED: exit code {process.returncode}: {process.stderr.read()}")
        return kills, resumed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(subprocess.run([options.fathom, "--quiet", "generate", options.model, "--prompt", "Once upon a time", "-n", "1500", "--seed", "1", "--ignore-eos"],
                                       check=True, capture_output=True, text=True).stdout)
        jobs = {"int8 folder": ["--type", "int8"], "gptq int4 folder": ["--type", "int4", "--method", "gptq", "--calibrate", text],
                "q8_0 GGUF": ["--type", "q8_0"], "calibrated q4_k GGUF": ["--type", "q4_k", "--calibrate", text]}
        failed = False
        for name, job in jobs.items():
            out = Path(folder) / ("model.gguf" if "GGUF" in name else "model")
            command = [options.fathom, "--quiet", "quantize", options.model, str(out), *map(str, job), "--max-shard-bytes", str(SHARD)]
            began = time.monotonic()
            subprocess.run(command, check=True, capture_output=True)
            longest, expected = time.monotonic() - began, digest(out)
            kills = resumed = same = 0
            for _ in range(options.rounds):
                shutil.rmtree(out) if out.is_dir() else out.unlink()
                counts = kill_until_done(command, out, expected, longest, rng)
                kills, resumed = kills + counts[0], resumed + counts[1]
                same += digest(out) == expected and not leftovers(out)
            print(f"{name}: {options.rounds} runs killed {kills} times, {resumed} times with work to go on from: {same} with the bytes of an undisturbed run", flush=True)
            failed = failed or same != options.rounds
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    if failed:
        raise SystemExit("FAILED")


if __name__ == "__main__":
    main()
