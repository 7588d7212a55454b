#!/usr/bin/env python3
"""What the size of prompt chunks does to a server's throughput, from step times: serve_schedule.py [--steps ROWS:MS,...] [--raw TOKENS_PER_S].

Plays the engine's schedule (src/infer/engine_schedule.cpp: every step has a row of each answer under way, then chunks of prompts, oldest first)
with clients that come back one step after their answer. The default step times are those of bench/results/serve-h100-2026-11-22.json: an H100, the
V2-Lite shape in bf16, 128 answers under way, read off runs whose chunks were 640, 1152 and 8192 rows.
"""
import argparse

STEPS = "128:15.9,640:20.7,1152:24.5,8304:91"


def milliseconds(rows, points):
    """Straight lines between the points; fewer rows than the first read fewer experts, which saves some two fifths of the time at most."""
    if rows <= points[0][0]:
        return points[0][1] * (0.62 + 0.38 * rows / points[0][0])
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if rows <= x1 or (x1, y1) == points[-1]:
            return y0 + (rows - x0) * (y1 - y0) / (x1 - x0)
    raise AssertionError


def play(points, chunk, clients, waves, prompt, answer):
    """Tokens a second and the times to the first token in ms. A request is [prompt rows left, tokens left, arrival]."""
    waiting, running, arriving = (waves - 1) * clients, [[prompt, answer, 0.0] for _ in range(clients)], []
    now, first = 0.0, []
    while running or arriving:
        decoding = [r for r in running if r[0] == 0]
        room, rows = chunk - len(decoding), len(decoding)
        reading = []
        for request in running:
            if request[0] > 0 and room > 0:
                taken = min(request[0], room)
                reading.append((request, taken))
                room -= taken
                rows += taken
        now += milliseconds(rows, points)
        running += arriving
        arriving = []
        for request in decoding:
            request[1] -= 1
        for request, taken in reading:
            request[0] -= taken
            if request[0] == 0:
                request[1] -= 1
                first.append(now - request[2])
        ended = [r for r in running if r[1] == 0]
        running = [r for r in running if r[1] > 0]
        for _ in ended[:waiting]:
            arriving.append([prompt, answer, now])
        waiting -= len(arriving)
    first.sort()
    return 1e3 * waves * clients * answer / now, first[len(first) // 2], first[int(0.99 * len(first))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=STEPS, help="rows of a step and the milliseconds it takes")
    parser.add_argument("--raw", type=float, default=8141, help="tokens a second of raw decoding")
    parser.add_argument("--chunks", default="640,1152,2048,4096,8192")
    parser.add_argument("--waves", default="4,12,64", help="requests a client")
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=128)
    options = parser.parse_args()
    points = [tuple(map(float, point.split(":"))) for point in options.steps.split(",")]
    print("| requests a client | rows of a step at most | tokens/s | of raw | first token p50, p99 ms |\n| --- | --- | --- | --- | --- |")
    for waves in map(int, options.waves.split(",")):
        for chunk in map(int, options.chunks.split(",")):
            rate, median, late = play(points, chunk, options.clients, waves, options.prompt, options.answer)
            print(f"| {waves} | {chunk} | {rate:.0f} | {rate / options.raw:.3f} | {median:.0f}, {late:.0f} |")


if __name__ == "__main__":
    main()
