#!/usr/bin/env python3
"""Decoding and prefilling GGUF files with random weights, ours and the peers' in turn, so that all meet the same machine.

Writes bench/results/cpu-bench-DATE.json (every run) and .md (medians and ratios). Wants ../shared/bench/make_random_gguf.py,
which needs numpy, for files that are not there yet.

Two clocks: `wall` is what a user sees and wants an idle machine. `cpu` is processor time of one thread; other work on the
machine disturbs it little, so its ratios can be used where the machine is shared (a peer's is the difference of two runs,
because its start counts too).
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAKER = ROOT.parent / "shared/bench/make_random_gguf.py"
# name: (prompt tokens, new tokens, depth); a repetition
RUNS = {
    "decode": (0, 32, 0),
    "decode-4096": (0, 16, 4096),
    "prefill-512": (512, 0, 0),
    "prefill-2048": (2048, 0, 0),
}
SHORT_RUNS = ["decode", "prefill-512"]  # what types other than Q8_0 are asked by default
BEST_FLAGS = {"llama.cpp": [], "ik_llama.cpp": ["-fmoe", "1", "-mla", "3", "-fa", "1"]}
BEST_FLAGS["ik_llama.cpp, repacked"] = BEST_FLAGS["ik_llama.cpp"] + ["-rtr", "1"]


def run_counted(command):
    """Standard output of a command, its processor seconds and its peak resident bytes."""
    with tempfile.TemporaryFile() as out:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, stdout=out, stderr=errors)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}: {' '.join(last)}")
        out.seek(0)
        return out.read().decode(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def ours(binary, file, run, threads, cache):
    prompt, new, depth = RUNS[run]
    command = [binary, "bench", "prefill" if prompt else "decode", file, "--threads", threads, "--repetitions", 2, "--json", "--quiet"]
    command += ["--cache-type", cache, "--depth", depth]
    command += ["--prompt-tokens", prompt] if prompt else ["--max-new-tokens", new]
    r = json.loads(run_counted(list(map(str, command)))[0])
    return {"tokens_per_s": r["tokens_per_second"], "cpu_s_per_token": r["cpu_seconds_per_token"], "peak_bytes": r["peak_memory_bytes"],
            "bytes_per_token": r["bytes_per_token"], "machine_read_gb_per_s": r["machine_read_gb_per_s"]}


def peer(binary, file, run, threads, clock, flags):
    prompt, new, depth = RUNS[run]
    if depth and "-fmoe" in flags:  # ik's llama-bench has no depth: -gp decodes behind a prompt
        tests = ["-p", "0", "-n", "0", "-gp", f"{depth},{new}"]
    else:
        tests = ["-p", str(prompt), "-n", str(new)] + (["-d", str(depth)] if depth else [])

    def repeated(times):
        return run_counted([binary, "-m", str(file), "-t", str(threads), "-o", "json", "-r", str(times), *tests, *flags])

    text, cpu, peak = repeated(1)
    result = {"tokens_per_s": json.loads(text)[0]["avg_ts"], "peak_bytes": peak}
    if clock == "cpu" and not depth:  # a repetition at depth reads the prompt again
        more = 2 if prompt else 6  # repetitions; the difference must stand out from how much two starts differ
        seconds = (repeated(1 + more)[1] - cpu) / (more * (prompt or new))
        if seconds > 0:
            result["cpu_s_per_token"] = seconds
    return result


def attempt(measure, *how):
    """What `measure` says; a peer that cannot run a file costs its own figure only."""
    try:
        return measure(*how)
    except (RuntimeError, OSError, ValueError, LookupError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def rate_of(row, clock):
    if "error" in row:
        return None
    return row["tokens_per_s"] if clock == "wall" else 1 / row["cpu_s_per_token"] if "cpu_s_per_token" in row else None


def summary(rows, clock):
    """Markdown: medians, and ours over the best peer of the same round (median of the rounds' ratios)."""
    cases = {}
    for row in rows:
        rate = rate_of(row, clock)
        if rate is not None:
            cases.setdefault((row["type"], row["run"]), {}).setdefault(row["program"], {})[row["round"]] = (rate, row)
    lines = ["| type | run | " + " | ".join(["fathom", *BEST_FLAGS]) + " | ours / best | of the read bandwidth | peak GiB: ours, peers' least |",
             "| " + " | ".join(["---"] * (len(BEST_FLAGS) + 6)) + " |"]
    for (kind, run), programs in cases.items():
        middle = {name: statistics.median(rate for rate, _ in rounds.values()) for name, rounds in programs.items()}
        cells = [f"{middle[name]:.1f}" if name in middle else "-" for name in ["fathom", *BEST_FLAGS]]
        ratios = [rate / max(rounds[r][0] for name, rounds in programs.items() if name != "fathom" and r in rounds)
                  for r, (rate, _) in programs.get("fathom", {}).items()
                  if any(name != "fathom" and r in rounds for name, rounds in programs.items())]
        of_memory = [row["bytes_per_token"] * rate / 1e9 / row["machine_read_gb_per_s"] for rate, row in programs.get("fathom", {}).values()]
        peaks = {name: min(row["peak_bytes"] for _, row in rounds.values()) / 2**30 for name, rounds in programs.items()}
        least = min((peak for name, peak in peaks.items() if name != "fathom"), default=None)
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
        cells.append(f"{statistics.median(of_memory):.2f}" if of_memory and run.startswith("decode") and clock == "wall" else "-")
        cells.append((f"{peaks['fathom']:.2f}" if "fathom" in peaks else "-") + (f", {least:.2f}" if least else ""))
        lines.append(f"| {kind} | {run} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine():
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "cores": os.cpu_count(), "load": os.getloadavg()[0], "commit": commit,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%F %H:%M UTC")}


def file_of(folder, shape, kind):
    path = folder / f"{shape}-{kind}.gguf"
    if not path.exists():
        subprocess.run([sys.executable, MAKER, "--shape", shape, "--type", kind, "--out", path], check=True, stdout=subprocess.DEVNULL)
    return path


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", default=ROOT / "build/release/fathom")
    parser.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH"), help="llama.cpp's")
    parser.add_argument("--ik-llama-bench", default=os.environ.get("IK_LLAMA_BENCH"), help="ik_llama.cpp's")
    parser.add_argument("--shape", default="ds-small")
    parser.add_argument("--types", nargs="+", default=["bf16", "q8_0", "q4_0", "q4_K"])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), help="default: all for q8_0, decode and prefill-512 for other types")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: one thread, processor time")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache-type", default="bf16")
    parser.add_argument("--files", type=pathlib.Path, default=pathlib.Path("/tmp/fathom-gguf"))
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / f"bench/results/cpu-bench-{datetime.date.today()}")
    return parser.parse_args()


def main():
    options = arguments()
    if not MAKER.exists():
        sys.exit(f"cpu_gguf: error: {MAKER} is not there")
    options.files.mkdir(parents=True, exist_ok=True)
    threads = 1 if options.clock == "cpu" else options.threads
    peers = {"llama.cpp": options.llama_bench, "ik_llama.cpp": options.ik_llama_bench, "ik_llama.cpp, repacked": options.ik_llama_bench}
    result = {"machine": machine(), "clock": options.clock, "threads": threads, "shape": options.shape, "cache_type": options.cache_type, "rows": []}

    def record(**row):
        result["rows"].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")

    for kind in options.types:
        file = file_of(options.files, options.shape, kind)
        for round_number in range(1, options.rounds + 1):
            for run in options.runs or (list(RUNS) if kind == "q8_0" else SHORT_RUNS):
                common = {"type": kind, "run": run, "round": round_number}
                record(**common, program="fathom", **ours(options.fathom, file, run, threads, options.cache_type))
                for name, binary in peers.items():
                    if binary:
                        record(**common, program=name, **attempt(peer, binary, file, run, threads, options.clock, BEST_FLAGS[name]))
    m = result["machine"]
    unit = "tokens/s" if options.clock == "wall" else "tokens per second of processor time"
    text = (f"# {options.shape}, random weights: {unit}\n\n{m['cpu']}, {m['cores']} cores, load {m['load']:.1f}, {threads} thread(s), "
            f"{m['date']}, commit {m['commit']}, medians of {options.rounds} interleaved rounds.\n\n{summary(result['rows'], options.clock)}\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
