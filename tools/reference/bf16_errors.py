#!/usr/bin/env python3
"""How far Hugging Face transformers' own bf16 run of the fixtures is from their float32 answers: what our bf16 is held against.

The experts of every token are those of the float32 run; how many rows would have chosen others is counted. Relative errors
(Frobenius) of logits, and of the loss's gradients per tensor, go to tests/data/bf16_errors.json.

    python tools/reference/bf16_errors.py [FIXTURES [OUT]]      needs torch, transformers and safetensors; CPU
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ["v2-lite-greedy", "v2-group-limited", "v3", "v3-nope-lora-none"]


def relative(x: torch.Tensor, exact: torch.Tensor) -> float:
    return ((x.double() - exact.double()).norm() / exact.double().norm()).item()


class ForcedGate:
    """Stands before a router: its own affinities of the experts that the float32 run chose."""

    def __init__(self, gate: torch.nn.Module, indices: torch.Tensor, sigmoid: bool, config) -> None:
        self.forward, self.indices, self.sigmoid, self.config = gate.forward, indices.long(), sigmoid, config
        self.flipped = 0
        gate.forward = self

    def __call__(self, hidden: torch.Tensor):
        logits, _, chosen = self.forward(hidden)
        self.flipped += int((chosen.sort(-1).values != self.indices).any(-1).sum())
        scores = logits.float().sigmoid() if self.sigmoid else logits.float().softmax(-1)
        weights = scores.gather(1, self.indices)
        if self.sigmoid and self.config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * self.config.routed_scaling_factor, self.indices


def errors(folder: Path, dtype: torch.dtype) -> dict:
    golden = load_file(folder / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    gates = [ForcedGate(layer.mlp.gate, golden[f"router.{i}.indices"], model.config.model_type == "deepseek_v3", model.config)
             for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")]
    ids = golden["input_ids"].long()
    logits = model(ids, use_cache=False).logits.float()
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = {name: relative(p.grad, golden["grad." + name]) for name, p in model.named_parameters()
                 if "grad." + name in golden}
    return {"logits": relative(logits.detach(), golden["logits"]), "gradients": gradients,
            "flipped_rows": sum(gate.flipped for gate in gates), "rows": ids.numel() * len(gates)}


def main() -> None:
    fixtures = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "tests/data/fixtures"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else REPOSITORY / "tests/data/bf16_errors.json"
    found = {}
    for name in NAMES:
        exact = errors(fixtures / name, torch.float32)
        assert exact["logits"] < 1e-5 and exact["flipped_rows"] == 0, (name, exact)
        found[name] = errors(fixtures / name, torch.bfloat16)
        print(f"{name:20} logits {found[name]['logits']:.2e}  {found[name]['flipped_rows']} of {found[name]['rows']} rows flipped"
              f"  gradients {sorted(found[name]['gradients'].values())}")
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
