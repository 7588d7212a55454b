#!/usr/bin/env python3
"""Writes tests/data/integers/vectors.safetensors: matrices in the integer layouts of Hugging Face's quantizers and the numbers they mean.

Packed here by the published descriptions, one word at a time, without looking at the engine:
  compressed-tensors  compressors/quantized_compressors/pack_quantized.py (pack_to_int32), naive_quantized.py; compressors/mxfp4,
                      OCP Microscaling Formats 1.0 (E2M1 in groups of 32 with an E8M0 scale)
  GPTQ                AutoGPTQ's QuantLinear.pack (zero points less one) and GPTQModel's checkpoint_format gptq_v2 (as they are)
  AWQ                 AutoAWQ's WQLinear_GEMM.from_linear, order_map [0, 2, 4, 6, 1, 3, 5, 7]
Per case c: c.weight_packed, c.qweight ... as in files, c.numbers F32, and c.layout U8[4] = index into LAYOUTS, bits, group size
(0: rows), zero points. With --check the file is compared instead of written.
    pip install numpy safetensors ml_dtypes && python3 tools/make_integer_vectors.py [--check]
"""
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

OUT = Path(__file__).resolve().parent.parent / "tests/data/integers/vectors.safetensors"
LAYOUTS = ["pack-quantized", "int-quantized", "gptq", "gptq_v2", "awq", "mxfp4-pack-quantized"]
ROWS, COLUMNS = 24, 96


def words(fields, bits):
    """[rows, n] unsigned -> int32 [rows, ceil(n bits / 32)], the first field in the low bits."""
    per = 32 // bits
    rows, n = fields.shape
    out = np.zeros((rows, (n + per - 1) // per), np.uint32)
    for i in range(n):
        out[:, i // per] |= fields[:, i].astype(np.uint32) << np.uint32(bits * (i % per))
    return out.view(np.int32)


def pack_quantized(codes, zeros, scales, bits, asymmetric):
    out = {"weight_packed": words(codes, bits), "weight_scale": scales, "weight_shape": np.array([ROWS, COLUMNS], np.int64)}
    if asymmetric:
        out["weight_zero_point"] = np.ascontiguousarray(words(zeros.T, bits).T)
    return out


def int_quantized(codes, zeros, scales, bits, asymmetric):
    return {"weight": (codes.astype(np.int16) - 128).astype(np.int8), "weight_scale": scales}


def gptq(codes, zeros, scales, bits, minus, order):
    stored = (zeros.astype(np.int64) - minus) % (1 << bits)
    return {"qweight": np.ascontiguousarray(words(codes, bits).T), "qzeros": words(stored.T, bits),
            "scales": np.ascontiguousarray(scales.T), "g_idx": order.astype(np.int32)}


def awq(codes, zeros, scales):
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(fields):
        rows, n = fields.shape
        out = np.zeros((rows, n // 8), np.uint32)
        for word in range(n // 8):
            for i in range(8):
                out[:, word] |= fields[:, word * 8 + order[i]].astype(np.uint32) << np.uint32(4 * i)
        return out.view(np.int32)

    return {"qweight": pack(codes.T), "qzeros": pack(zeros.T), "scales": np.ascontiguousarray(scales.T)}


def mxfp4(rng):
    """Scales down to the subnormal 2^-127. The negative zero is 0, as ggml has it."""
    codes = rng.integers(0, 16, (ROWS, COLUMNS)).astype(np.uint8)
    exponents = rng.integers(100, 140, (ROWS, COLUMNS // 32)).astype(np.uint8)
    exponents[0] = [0, 1, 127]
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    numbers = (values[codes].astype(np.float64) * np.repeat(2.0 ** (exponents.astype(int) - 127), 32, axis=1)).astype(np.float32)
    return {"weight_packed": codes[:, 0::2] | codes[:, 1::2] << 4, "weight_scale": exponents, "numbers": numbers}


def case(rng, layout, bits, group, asymmetric, shuffled=False):
    if layout == "mxfp4-pack-quantized":
        return {**mxfp4(rng), "layout": np.array([LAYOUTS.index(layout), bits, group, 0], np.uint8)}
    size = group or COLUMNS
    groups = COLUMNS // size
    codes = rng.integers(0, 1 << bits, (ROWS, COLUMNS))
    zeros = rng.integers(0, 1 << bits, (ROWS, groups)) if asymmetric else np.full((ROWS, groups), 1 << (bits - 1))
    half = layout in ("gptq", "gptq_v2", "awq")
    scales = (rng.random((ROWS, groups)) * 0.1 + 0.001).astype(np.float16 if half else ml_dtypes.bfloat16)
    order = np.arange(COLUMNS) // size
    if shuffled:
        order = rng.permutation(order)
    numbers = scales.astype(np.float32)[:, order] * (codes - zeros[:, order]).astype(np.float32)
    if layout == "pack-quantized":
        out = pack_quantized(codes, zeros, scales, bits, asymmetric)
    elif layout == "int-quantized":
        out = int_quantized(codes, zeros, scales, bits, asymmetric)
    elif layout == "awq":
        out = awq(codes, zeros, scales)
    else:
        out = gptq(codes, zeros, scales, bits, 1 if layout == "gptq" else 0, order)
    out["numbers"] = numbers
    out["layout"] = np.array([LAYOUTS.index(layout), bits, group, int(asymmetric)], np.uint8)
    return out


def main():
    rng = np.random.default_rng(4)
    cases = [("pack-quantized", 4, 32, False), ("pack-quantized", 4, 32, True), ("pack-quantized", 4, 0, False),
             ("pack-quantized", 8, 32, False), ("pack-quantized", 8, 32, True), ("int-quantized", 8, 0, False),
             ("gptq", 4, 32, False), ("gptq", 4, 32, True), ("gptq_v2", 4, 32, True), ("gptq", 8, 32, False),
             ("gptq", 4, 32, False, True), ("awq", 4, 32, True), ("awq", 4, 0, True), ("mxfp4-pack-quantized", 4, 32, False)]
    tensors = {}
    for i, arguments in enumerate(cases):
        for name, value in case(rng, *arguments).items():
            tensors[f"case{i}.{name}"] = value
    if "--check" in sys.argv[1:]:
        old = load_file(OUT)
        same = old.keys() == tensors.keys() and all(np.array_equal(old[k], v) for k, v in tensors.items())
        print("the same" if same else f"{OUT} differs")
        return 0 if same else 1
    OUT.parent.mkdir(exist_ok=True)
    save_file(tensors, OUT)
    print(f"{OUT}: {OUT.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
