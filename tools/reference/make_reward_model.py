#!/usr/bin/env python3
"""Makes tests/data/reward-model: a tiny random reward model (DeepseekV3ForSequenceClassification with one label) and, by the
float64 oracle, the scores of a few pairs, their Bradley-Terry loss and its gradients.

    python tools/reference/make_reward_model.py [--out DIR]

needs numpy, safetensors and ml_dtypes.
"""
import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

import deepseek_numpy as ds
import make_checkpoints as mc
from autodiff import Var, backward, concat, log_softmax

NAME = "reward-model"
LENGTHS = [(7, 9), (12, 12), (5, 3)]  # tokens of chosen and rejected
CENTER = 0.05                        # center_rewards_coefficient
KEPT = ["score.weight", "model.norm.weight", "model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.gate.weight"]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path, default=mc.DATA)
    folder = arguments.parse_args().out / NAME
    config = mc.V3 | {"architectures": ["DeepseekV3ForSequenceClassification"], "num_labels": 1,
                      "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    for seed in range(1000):
        rng = np.random.default_rng([seed, *NAME.encode()])
        weights = mc.random_weights(mc.Recipe(config), rng)
        del weights["lm_head.weight"]
        score = mc.stored("score.weight", 0.3 * rng.standard_normal((1, config["hidden_size"])))
        weights["score.weight"] = score.astype(np.float64)
        w = {name: Var(value, tracked=not ds.is_buffer(name)) for name, value in weights.items()}
        w["lm_head.weight"] = w["score.weight"]  # the oracle's head is whatever has this name
        pairs, scores, margins, loss = [], [], [], Var(np.zeros(()))
        for lengths in LENGTHS:
            both = []
            for length in lengths:
                ids = rng.integers(2, config["vocab_size"], size=length, dtype=np.int32)
                output = ds.forward(config, w, ids[None])
                margins.append(mc.margin(output))
                both.append(output.logits[0, length - 1])
                pairs.append(ids)
            scores += [float(x.value[0]) for x in both]
            # -log sigmoid(a - b) is the first of log_softmax([a, b])
            loss = loss - log_softmax(concat(both))[0] + CENTER * ((both[0] + both[1]) ** 2).sum()
        if min(margins) > 1e-5:
            break
    loss = loss * (1 / len(LENGTHS))
    backward(loss)
    golden = {"scores": np.array(scores, dtype=np.float32)}
    golden |= {f"ids.{i}": ids for i, ids in enumerate(pairs)}
    golden |= {f"grad.{name}": w[name].grad.astype(np.float32, order="C") for name in KEPT}
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: mc.stored(name, value) for name, value in weights.items()}
    (folder / "model.safetensors").write_bytes(save(stored, metadata={"format": "pt"}))
    (folder / "golden.safetensors").write_bytes(save(golden))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    summary = {"oracle": "tools/reference/deepseek_numpy.py, float64", "seed": seed, "loss": float(loss.value), "center": CENTER,
               "pairs": len(LENGTHS), "router_margin": min(margins)}
    (folder / "golden.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(summary, scores)


if __name__ == "__main__":
    main()
