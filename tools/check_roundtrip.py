#!/usr/bin/env python3
"""Compare the safetensors of two model folders with the official reader: names, dtypes, shapes and bytes.

usage: check_roundtrip.py DIR_A DIR_B          needs the PyPI package safetensors

Each folder holds model.safetensors, or shards listed in model.safetensors.index.json. How tensors are spread over
files does not matter. Exits 0 when both hold the same, 1 with one line per difference otherwise.
"""

import json
import pathlib
import sys

import safetensors


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise SystemExit(f"{folder}: neither {single.name} nor {index.name}")
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def tensors_of(folder: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """name -> (dtype, shape, bytes). Raw bytes, since numpy knows neither bf16 nor fp8."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in files_of(folder):
        for name, entry in safetensors.deserialize(path.read_bytes()):
            if name in tensors:
                raise SystemExit(f"{path}: tensor {name} is in an earlier shard too")
            tensors[name] = (str(entry["dtype"]), tuple(entry["shape"]), bytes(entry["data"]))
    return tensors


def check_index(folder: pathlib.Path, tensors: dict) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return []
    content = json.loads(index.read_text())
    problems = [f"{folder}: index and shards differ in {name}" for name in sorted(set(content["weight_map"]) ^ set(tensors))]
    size = sum(len(data) for _, _, data in tensors.values())
    if content["metadata"]["total_size"] != size:
        problems.append(f"{folder}: total_size is {content['metadata']['total_size']}, the tensors have {size} bytes")
    return problems


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    folders = [pathlib.Path(argument) for argument in sys.argv[1:]]
    a, b = (tensors_of(folder) for folder in folders)
    problems = check_index(folders[0], a) + check_index(folders[1], b)
    problems += [f"{name}: only in {folders[0]}" for name in sorted(a.keys() - b.keys())]
    problems += [f"{name}: only in {folders[1]}" for name in sorted(b.keys() - a.keys())]
    for name in sorted(a.keys() & b.keys()):
        for what, left, right in zip(("dtype", "shape"), a[name], b[name]):
            if left != right:
                problems.append(f"{name}: {what} {left} and {right}")
        if a[name][2] != b[name][2]:
            problems.append(f"{name}: bytes differ")
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{len(a)} tensors, all equal")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
