#!/usr/bin/env python3
"""Clients that misbehave against a running server: serve_abuse.py PORT [--leave N] [--mutate N] [--short N].

Prints counts for docs/reliability.md; fails when the server dies, answers 5xx, or keeps blocks that nobody uses.
"""
import argparse
import asyncio
import collections
import concurrent.futures
import json
import random
import socket
import time
import urllib.request


def load(port):
    return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/load", timeout=20))


def resident(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("process_resident_memory_bytes ")))


def wait_until_quiet(port):
    for _ in range(600):
        state = load(port)
        if state["server_load"] == 0 and state["used_blocks"] == 0:
            return
        time.sleep(0.1)
    raise SystemExit(f"FAILED: the server still has work: {state}")


def request(body, path="/v1/completions"):
    text = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(text), text)


async def leave(port, seed):
    """Asks for a long stream and leaves: at once, or after some bytes."""
    rng = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    prompt = "Once upon a time " * rng.choice([1, 1, 1, 40])
    writer.write(request({"prompt": prompt, "max_tokens": 400, "ignore_eos": True, "stream": True, "seed": seed}))
    await writer.drain()
    if rng.random() < 0.7:
        await reader.read(rng.choice([1, 300, 2000]))
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()


async def leave_all(port, count, at_a_time=64):
    for first in range(0, count, at_a_time):
        await asyncio.gather(*[leave(port, seed) for seed in range(first, min(first + at_a_time, count))])


def mutated(rng):
    bodies = [{"prompt": "a", "max_tokens": 1}, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "response_format": {"type": "json_object"}},
              {"prompt": [1, 2, 3], "max_tokens": 1, "logprobs": 1, "echo": True, "n": 2}, {"input": "a", "max_output_tokens": 1}]
    paths = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize", "/v1/models"]
    body = rng.choice(bodies)
    if rng.random() < 0.5:  # a field gets a value it should not have
        key = rng.choice([*body, "temperature", "stop", "n", "tools", "response_format", "logit_bias", "stream_options", "suffix", "messages"])
        body = {**body, key: rng.choice([None, -1, 1e300, "x", [], {}, [[]], {"type": []}, True, [1, "a"], "\ud800", 2**63])}
    data = bytearray(request(body, rng.choice(paths)))
    for _ in range(rng.choice([0, 0, 1, 1, 4, 16])):
        at = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.4:
            data[at] = rng.randrange(256)
        elif kind < 0.7:
            del data[at:at + rng.randrange(1, 8)]
        else:
            data[at:at] = rng.choice([b"\r\n", b"\0", b"{", b"\"", b"\xff\xfe", b"%", b": ", b"9" * 20, b"[" * 200])
        if not data:
            return b"\r\n\r\n"
    return bytes(data)


def status_of(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=0.25) as client:
        try:
            client.sendall(data)
            reply = client.recv(4096)
        except TimeoutError:
            return "waits for more"  # a body that is shorter than it said: the client leaves
        except OSError:
            return "closed"
    if not reply.startswith(b"HTTP/1.1 "):
        return "closed"
    if reply[9:10] == b"5":
        print("5xx:", data, reply, flush=True)
    return reply[9:12].decode("latin-1")


def mutate_all(port, count, threads=16):
    def work(thread):
        rng = random.Random(thread)
        return [status_of(port, mutated(rng)) for _ in range(count // threads)]

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return dict(collections.Counter(status for part in pool.map(work, range(threads)) for status in part))


async def short_all(port, count, at_a_time=32):
    async def client(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(number, count, at_a_time):
            writer.write(request({"prompt": f"The {i % 97} dogs", "max_tokens": 2, "seed": i}))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*[client(number) for number in range(at_a_time)])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--leave", type=int, default=10_000)
    parser.add_argument("--mutate", type=int, default=100_000)
    parser.add_argument("--short", type=int, default=100_000)
    options = parser.parse_args()
    began = time.time()
    asyncio.run(leave_all(options.port, options.leave))
    wait_until_quiet(options.port)
    print(f"{options.leave} clients left, no block kept, {time.time() - began:.0f} s", flush=True)
    began = time.time()
    statuses = mutate_all(options.port, options.mutate)
    wait_until_quiet(options.port)
    print(f"{options.mutate} mutated requests: {dict(sorted(statuses.items()))}, {time.time() - began:.0f} s", flush=True)
    if any(status.startswith("5") for status in statuses):
        raise SystemExit("FAILED: a 5xx answer")
    began = time.time()
    asyncio.run(short_all(options.port, options.short // 10))
    before = resident(options.port)
    asyncio.run(short_all(options.port, options.short))
    growth = resident(options.port) / before - 1
    print(f"{options.short} short requests: memory {100 * growth:+.2f} %, {time.time() - began:.0f} s", flush=True)
    if growth > 0.01:
        raise SystemExit("FAILED: memory grew")


if __name__ == "__main__":
    main()
