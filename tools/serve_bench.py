#!/usr/bin/env python3
"""The server's figures on this machine: serve_bench.py FATHOM MODEL [--streams N]. Starts the server itself; standard library only.

Prints one line per figure with the bound it is judged by, and writes them as JSON to --out.
"""
import argparse
import asyncio
import json
import os
import re
import resource
import subprocess
import time
from pathlib import Path


class Server:
    def __init__(self, fathom, model, *options):
        self.process = subprocess.Popen([fathom, "serve", model, "--port", "0", "--no-log-requests", *options], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            if found:
                self.port = int(found.group(1))
                return
        raise SystemExit("the server did not start")

    def resident(self):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text()).group(1)) * 1024

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


async def stream(port, body):
    """Seconds from the start to every event, and whether the stream was complete; none, where the server refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text = json.dumps({**body, "stream": True})
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
    start, times, whole = time.perf_counter(), [], False
    if b" 200 " not in await reader.readline():
        writer.close()
        return times, whole
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            whole = True
            break
        if line.startswith(b"data: "):
            times.append(time.perf_counter() - start)
    writer.close()
    return times, whole


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


async def many_streams(port, count, tokens):
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "ignore_eos": True, "temperature": 1}
    results = await asyncio.gather(*[stream(port, {**body, "seed": i}) for i in range(count)])
    gaps = [b - a for times, _ in results for a, b in zip(times, times[1:])]
    return {"streams": count, "complete": sum(whole and len(times) == tokens for times, whole in results),
            "median_gap_ms": 1e3 * percentile(gaps, 0.5), "p99_gap_ms": 1e3 * percentile(gaps, 0.99)}


async def idle_memory(server, count):
    before = server.resident()
    open_ones = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(count)]
    for reader, writer in open_ones:  # each has had a reply and waits
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    for reader, _ in open_ones:
        await reader.readuntil(b"}")
    await asyncio.sleep(0.5)
    per_connection = (server.resident() - before) / count
    for _, writer in open_ones:
        writer.close()
    return per_connection


async def prefix(port, tokens):
    """Times to the first token of a prompt that nobody asked before, and of one that begins like it."""
    cold, warm = [], []
    for round_number in range(5):
        shared = [100 + (7 * i + 13 * round_number) % 5000 for i in range(tokens)]
        for times, tail in ((cold, 200), (warm, 300)):
            result, _ = await stream(port, {"prompt": shared + [tail, tail + 1], "max_tokens": 2, "ignore_eos": True})
            times.append(result[0])
    return percentile(cold, 0.5), percentile(warm, 0.5)


async def overload(port, clients, seconds, prompt_tokens, tokens):
    """Clients that come back at once, answered or refused: the times to the first token and per further token of those answered, in seconds, and how
    many were refused."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    first, further, refused = [], [], 0

    async def client(number):
        nonlocal refused
        for turn in range(1 << 30):
            if loop.time() >= end:
                return
            ids = [100 + (31 * i + 977 * number + 7919 * turn) % 8000 for i in range(prompt_tokens)]  # nothing is found in the cache
            times, whole = await stream(port, {"prompt": ids, "max_tokens": tokens, "ignore_eos": True, "temperature": 1, "seed": number})
            if whole:
                first.append(times[0])
                further.append((times[-1] - times[0]) / (len(times) - 1))
            else:
                refused += 1
                await asyncio.sleep(0.2)

    await asyncio.gather(*[client(number) for number in range(clients)])
    return first, further, refused


def objective(fathom, model, clients, seconds, which):
    """Under a load that would miss it, what is admitted keeps the objective, and the rest gets 429. which: tpot (short prompts, answers of 64 tokens)
    or ttft (prompts of 256 tokens, answers of 4)."""
    lengths, index = ((8, 64), 1) if which == "tpot" else ((256, 4), 0)
    free = Server(fathom, model, "--max-num-seqs", "1024", "--max-waiting", "4096")
    try:
        asyncio.run(overload(free.port, 1, 2, *lengths))  # warm
        alone = asyncio.run(overload(free.port, 1, 3, *lengths))[index]
        without = asyncio.run(overload(free.port, clients, seconds, *lengths))[index]
    finally:
        free.stop()
    target = 1e3 * (percentile(alone, 0.5) * percentile(without, 0.5)) ** 0.5  # between what one gets and what all together get
    limits = ["--max-waiting", "4"] if which == "tpot" else []
    held = Server(fathom, model, "--max-num-seqs", "1024", f"--{which}-slo-ms", f"{target:.3f}", *limits)
    try:
        asyncio.run(overload(held.port, clients, 2, *lengths))  # learns how long its batches take
        result = asyncio.run(overload(held.port, clients, seconds, *lengths))
    finally:
        held.stop()
    times, refused = result[index], result[2]
    return {"clients": clients, "alone_ms": 1e3 * percentile(alone, 0.5), "without_p99_ms": 1e3 * percentile(without, 0.99), "slo_ms": target,
            "median_ms": 1e3 * percentile(times, 0.5), "p99_ms": 1e3 * percentile(times, 0.99), "answered": len(times), "refused_429": refused,
            "ratio": 1e3 * percentile(times, 0.99) / target, "bound": 1.0}


def throughput(fathom, model, server, rounds):
    """Tokens a second: served at 32 requests at a time, greedy and sampled, and raw at batches of 32 and 1, in turn. The processor time of a token, of
    server and client together beside that of the raw run, says what serving costs where other work disturbs the clock."""
    cpu = {}

    def spent():
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return server.cpu_seconds() + children.ru_utime + children.ru_stime

    def served(temperature):
        bench = [fathom, "bench", "serve", "--port", str(server.port), "--json", "--quiet", "--num-prompts", "96", "--max-concurrency", "32",
                 "--input-len", "32", "--output-len", "200", "--ignore-eos", "--temperature", str(temperature)]
        before = spent()
        result = json.loads(subprocess.run(bench, check=True, capture_output=True, text=True).stdout)
        cpu.setdefault(f"served at temperature {temperature}", []).append((spent() - before) / result["total_output_tokens"])
        return result["output_throughput"]

    def raw(batch):
        run = [fathom, "bench", "decode", model, "--batch", str(batch), "--depth", "32", "--max-new-tokens", "66", "--repetitions", "3", "--json", "--quiet"]
        result = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
        cpu.setdefault(f"raw, batch {batch}", []).append(result["cpu_seconds_per_token"])
        return result["tokens_per_second"]

    all_rates = {"served": lambda: served(0), "raw": lambda: raw(32), "served_sampled": lambda: served(1), "raw_batch_1": lambda: raw(1)}
    rates = {name: [] for name in all_rates}
    for _ in range(rounds):
        for name, measure in all_rates.items():
            rates[name].append(measure())
    middle = {name: percentile(values, 0.5) for name, values in rates.items()}
    ratio = percentile([a / b for a, b in zip(rates["served"], rates["raw"])], 0.5)
    return {**middle, "ratio": ratio, "bound": 0.85, "ratio_sampled": middle["served_sampled"] / middle["raw"],
            "raw_batch_32_over_1": middle["raw"] / middle["raw_batch_1"], "bound_batch": 3.0, "rounds": rates,
            "cpu_us_per_token": {name: 1e6 * percentile(values, 0.5) for name, values in cpu.items()},
            "cpu_us_per_token_rounds": {name: [1e6 * value for value in values] for name, values in cpu.items()}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64, help="of the overload that the objectives are tried under")
    parser.add_argument("--rounds", type=int, default=7, help="of the throughput")
    parser.add_argument("--only", choices=["prefix", "idle", "throughput", "streams", "tpot-slo", "ttft-slo"], nargs="+", help="these figures")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wanted = set(options.only or ["prefix", "idle", "throughput", "streams", "tpot-slo", "ttft-slo"])
    server = Server(options.fathom, options.model, "--max-num-seqs", "1024", "--cache-tokens", "131072")
    figures = {}
    try:
        if "prefix" in wanted:
            cold, warm = asyncio.run(prefix(server.port, options.prefix))
            figures["prefix"] = {"tokens": options.prefix, "cold_ms": 1e3 * cold, "warm_ms": 1e3 * warm, "ratio": warm / cold, "bound": 0.10}
        if "idle" in wanted:
            figures["idle_connection_bytes"] = {"value": asyncio.run(idle_memory(server, 500)), "bound": 40 * 1024}
        if "throughput" in wanted:
            figures["throughput_32"] = throughput(options.fathom, options.model, server, options.rounds)
        if "streams" in wanted:
            streams = asyncio.run(many_streams(server.port, options.streams, 40))
            figures["streams"] = {**streams, "p99_over_median": streams["p99_gap_ms"] / streams["median_gap_ms"], "bound": 3.0}
    finally:
        figures["exit_code_after_sigterm"] = server.stop()
    for which in ("tpot", "ttft"):
        if f"{which}-slo" in wanted:
            figures[f"{which}_slo"] = objective(options.fathom, options.model, options.clients, 15, which)
    for name, values in figures.items():
        print(f"{name}: {json.dumps(values)}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
