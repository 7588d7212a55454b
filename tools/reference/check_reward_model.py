#!/usr/bin/env python3
"""Asks transformers what it says of a reward model.

    python tools/reference/check_reward_model.py                       the fixture: scores of NumPy, in float32
    python tools/reference/check_reward_model.py MODEL SCORED.jsonl    a checkpoint of `fathom reward train`, and what
                                                                       `fathom reward score MODEL pairs.jsonl --out SCORED.jsonl` wrote

needs torch and transformers (5.17 was used).
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

FIXTURE = Path(__file__).resolve().parents[2] / "tests" / "data" / "reward-model"


def open_model(folder: Path):
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    print(type(model).__name__, "with", model.config.num_labels, "label")
    return model.eval()


def scores(model, sequences) -> np.ndarray:
    with torch.no_grad():  # one at a time: nothing is padded
        return np.array([model(input_ids=torch.tensor(np.array([s]), dtype=torch.long)).logits[0, 0].item() for s in sequences])


def check_fixture() -> float:
    golden = load_file(FIXTURE / "golden.safetensors")
    sequences = [golden[f"ids.{i}"] for i in range(len(golden["scores"]))]
    return float(np.abs(scores(open_model(FIXTURE), sequences) - golden["scores"]).max())


def check_trained(folder: Path, scored: Path, limit: int = 64) -> float:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    text_of = lambda token: token["content"] if isinstance(token, dict) else token
    ends = [tokenizer.convert_tokens_to_ids(text_of(settings[key])) for key in ("bos_token", "eos_token")]
    model, worst = open_model(folder), 0.0
    for line in scored.read_text().splitlines()[:limit]:
        pair = json.loads(line)
        for kind in ("chosen", "rejected"):
            parts = [tokenizer.encode(pair[key], add_special_tokens=False) for key in ("prompt", kind)]
            sequence = [ends[0], *parts[0], *parts[1], ends[1]]
            worst = max(worst, abs(float(scores(model, [sequence])[0]) - pair[f"{kind}_reward"]))
    return worst


def main() -> None:
    difference = check_trained(Path(sys.argv[1]), Path(sys.argv[2])) if len(sys.argv) == 3 else check_fixture()
    print(f"largest difference of a score: {difference:.1e}")
    sys.exit(difference > 1e-3)


if __name__ == "__main__":
    main()
