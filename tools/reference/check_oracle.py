#!/usr/bin/env python3
"""Compares deepseek_numpy.py with everything that Hugging Face transformers says about the fixtures, and prints it.

    python tools/reference/check_oracle.py [FIXTURES]        needs numpy, safetensors and ml_dtypes
"""
import json
import sys
from pathlib import Path

import numpy as np

import deepseek_numpy as ds

FIXTURES = ["v2-lite-greedy", "v2-group-limited", "v3", "v3-nope-lora-none", "v3-fp8-blocks", "v3-true-head-dims"]


def relative(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check(folder: Path) -> dict[str, float]:
    config, weights = ds.load_checkpoint(folder)
    golden = ds.read_safetensors(folder / "golden.safetensors")
    summary = json.loads((folder / "golden.json").read_text())
    ids = golden["input_ids"]
    loss, gradients, output = ds.loss_and_gradients(config, weights, ids)
    found = {"logits": float(np.abs(output.logits.value - golden["logits"]).max())}
    for name, value in golden.items():
        kind, _, rest = name.partition(".")
        if kind == "hidden":
            error = float(np.abs(output.hidden[int(rest)].value[0] - value).max())
        elif kind == "grad":
            error = relative(gradients[rest], value)
        elif kind == "router" and name.endswith("indices"):
            error = float((output.routing[int(rest.split(".")[0])].indices != value).sum())
            kind = "router flips"
        elif kind == "router":
            error = float(np.abs(output.routing[int(rest.split(".")[0])].weights.value - value).max())
        elif name == "greedy_nocache":
            kind, error = "greedy flips", float((ds.greedy(config, weights, golden["prompt"], 40)[0] != value).sum())
        else:
            continue
        found[kind] = max(found.get(kind, 0.0), error)
    if "adamw_losses" in summary:
        losses, norms, final = ds.adamw_run(config, weights, ids)
        found["loss"] = abs(loss / summary["loss"] - 1)
        found["adamw losses"] = relative(np.array(losses + [final]),
                                         np.array(summary["adamw_losses"] + [summary["adamw_final_loss"]]))
        found["adamw norms"] = relative(np.array(norms), np.array(summary["adamw_grad_norms"]))
    return found


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[3] / "shared" / "fixtures"
    limits = {"logits": 3.5e-5, "hidden": 1.3e-4, "grad": 1e-4, "router": 5e-5, "router flips": 0, "greedy flips": 0,
              "loss": 1e-6, "adamw losses": 1e-5, "adamw norms": 1e-5}
    failed = False
    for name in FIXTURES:
        found = check(root / name)
        failed |= any(error > limits[kind] for kind, error in found.items())
        print(f"{name:18}", "  ".join(f"{kind} {error:.1e}" for kind, error in found.items()), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
