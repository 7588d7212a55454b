#!/usr/bin/env python3
"""Copies the fixtures that the tests need everywhere from ../shared/fixtures to tests/data/fixtures.

Checkpoints are copied byte for byte. golden.safetensors loses whole tensors (never parts of one), by the rules below,
so that tests/data stays within 14 MiB. Tests prefer the full fixture where ../shared exists.

    python tools/reference/trim_fixtures.py [SOURCE [DESTINATION]]      needs numpy and safetensors
"""
import re
import shutil
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[2]

ALWAYS = r"input_ids|logits|router\..*|prompt|greedy|greedy_nocache"
HIDDEN = r"hidden\..*"
# Every kind of tensor once or more: all norms and gates, one dense and one MoE layer's other matrices.
GRADS_OF_V3 = (r"grad\..*(norm|mlp\.gate)\.weight"
               r"|grad\.model\.layers\.0\.self_attn\..*"
               r"|grad\.model\.layers\.1\.(self_attn|mlp\.experts\.1)\..*")
GRADS_OF_V2_LITE = (r"grad\..*(norm|mlp\.gate)\.weight"
                    r"|grad\.model\.layers\.1\.self_attn\.(q_proj|kv_a).*")
KEPT = {
    "v2-lite-greedy": [ALWAYS, GRADS_OF_V2_LITE],
    "v2-group-limited": [ALWAYS],
    "v3": [ALWAYS, HIDDEN, GRADS_OF_V3],
    "v3-nope-lora-none": [ALWAYS],
    "v3-fp8-blocks": [ALWAYS],
    # v3-true-head-dims stays outside: its weights alone are 4.1 MB, and v3-fp8-blocks has the same shapes.
}


def trim(source: Path, destination: Path, patterns: list[str]) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "golden.json", "model.safetensors"):
        if (source / name).exists():
            shutil.copyfile(source / name, destination / name)
    keep = re.compile("|".join(f"(?:{p})" for p in patterns))
    golden = load_file(source / "golden.safetensors")
    kept = {name: value for name, value in golden.items() if keep.fullmatch(name)}
    save_file(kept, destination / "golden.safetensors")
    size = sum(f.stat().st_size for f in destination.iterdir())
    print(f"{destination.name:20} {len(kept):3} of {len(golden):3} golden tensors, {size:9,} bytes")


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY.parent / "shared" / "fixtures"
    destination = Path(sys.argv[2]) if len(sys.argv) > 2 else REPOSITORY / "tests" / "data" / "fixtures"
    for name, patterns in KEPT.items():
        trim(source / name, destination / name, patterns)


if __name__ == "__main__":
    main()
