#!/usr/bin/env python3
"""Writes tests/data/blocks: what the Python package gguf says about the block types of GGUF.

vectors.bin   random blocks of every type and the numbers they decode to; repeated: u32 ggml type, u32 blocks, blocks, f32 numbers
encoded.bin   normal numbers and the blocks they encode to; repeated: u32 ggml type, u32 blocks, f32 numbers, blocks
With --check the files are compared instead of written.
    pip install gguf && python3 tools/make_block_vectors.py [--check]
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

OUT = Path(__file__).resolve().parent.parent / "tests/data/blocks"
# Type and the byte offsets of its half-precision factors, which must be finite.
TYPES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
         T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: []}
BLOCKS = 4


def decoded(rng):
    out = b""
    for kind, halves in TYPES.items():
        _, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for at in halves:
            value = rng.standard_normal(BLOCKS).astype(np.float16)
            value[0] = np.float16(-6e-8)  # subnormal
            blocks[:, at:at + 2] = value.view(np.uint8).reshape(BLOCKS, 2)
        if kind == T.MXFP4:
            blocks[:, 0] = [0, 1, 2, 130]
        numbers = dequantize(blocks, kind).astype(np.float32)
        out += np.array([kind.value, BLOCKS], np.uint32).tobytes() + blocks.tobytes() + numbers.tobytes()
    return out


def encoded(rng):
    out = b""
    for kind in (T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1):
        numbers = rng.standard_normal((8, 32)).astype(np.float32)
        numbers[0] = 0
        out += np.array([kind.value, 8], np.uint32).tobytes() + numbers.tobytes() + quantize(numbers, kind).tobytes()
    return out


def main():
    rng = np.random.default_rng(4)
    for name, content in (("vectors.bin", decoded(rng)), ("encoded.bin", encoded(rng))):
        if "--check" in sys.argv:
            assert (OUT / name).read_bytes() == content, f"tests/data/blocks/{name} differs from what gguf says"
        else:
            OUT.mkdir(parents=True, exist_ok=True)
            (OUT / name).write_bytes(content)


if __name__ == "__main__":
    main()
