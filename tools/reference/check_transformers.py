#!/usr/bin/env python3
"""Loads checkpoints with Hugging Face transformers (CPU, float32, eager) and compares its logits and its loss's
gradients with golden.safetensors beside them.

    python tools/reference/check_transformers.py FOLDER ...        needs torch, transformers and safetensors
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def check(folder: Path) -> str:
    golden = load_file(folder / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = golden["input_ids"].long()
    logits = model(ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    found = f"logits {(logits - golden['logits']).abs().max().item():.1e}"
    # Experts are held fused under other names there; all other tensors keep theirs.
    errors = [(p.grad - golden["grad." + name]).norm() / golden["grad." + name].norm()
              for name, p in model.named_parameters() if "grad." + name in golden]
    return found + (f"  grad {max(errors).item():.1e} ({len(errors)} tensors)" if errors else "")


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        try:
            print(f"{folder.name:24} {check(folder)}", flush=True)
        except Exception as error:  # a model_type or setting that transformers does not have
            print(f"{folder.name:24} {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
