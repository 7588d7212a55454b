#!/usr/bin/env python3
"""fathom against llama.cpp on the same GGUF files, both ways: check_llama.py FATHOM [MODEL] [--text FILE ...] [--json FILE].

Needs the PyPI packages llama-cpp-python (llama.cpp's own C interface), numpy and safetensors; without the first it says SKIP and ends well.

  files      `fathom quantize` writes each type, and llama.cpp's own quantizer writes it once more from fathom's F32 file; both programs read both
  greedy     64 tokens behind each of 8 prompts from F32 files must be the same ids
  texts      by default the two held-out story corpora beside the checkout, which the bundled model was made for, where they are
  logits     of every position of a text in windows of 256 tokens. "exact" is the file's numbers in F32 (`fathom dump --dtype f32`), which needs no
             rounding of activations. Agreement is of the most likely token, KL is of the first from the second, in nats
  unpacked   the file that llama.cpp's own code makes of a quantized one, all of F32, in llama.cpp against "exact": do both read the same weights?
  absorbed   the attention that fathom decodes with, and llama.cpp always
  itself     llama.cpp with a cache of F16 (its default) against a cache of F32, and token by token against whole windows: what rounding
             alone does to this model

Fails when greedy tokens differ, when F32 or unpacked files agree on less than 99.9 %, when fathom lies more than 1.5 times as far from exact as llama.cpp does, or
when, of tokens that exact prefers by more than half a nat, less than 99 % agree.
"""
import argparse
import ctypes
import json
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import llama_cpp as lc
    import numpy as np
    from safetensors.numpy import load_file, save_file
except ImportError as error:
    print(f"SKIP: {error.name} is not installed (pip install llama-cpp-python numpy safetensors)")
    sys.exit(0)

WINDOW, PROMPTS, NEW_TOKENS, CLEAR = 256, 8, 64, 0.5
CORPORA = Path(__file__).resolve().parents[2] / "shared/data/corpora/stories"
TEXTS = ["stories-victorian.valid.txt.xz", "stories-simple.valid.txt.xz"]
FTYPES = {"f32": 0, "q4_0": 2, "q8_0": 7, "q2_k": 10, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18}  # llama.h, LLAMA_FTYPE_*


class Llama:
    """A file opened by llama.cpp on two threads of the CPU."""

    def __init__(self, path, f32_cache):
        model_params, params = lc.llama_model_default_params(), lc.llama_context_default_params()
        model_params.n_gpu_layers = 0
        self.model = lc.llama_model_load_from_file(str(path).encode(), model_params)
        if not self.model:
            raise SystemExit(f"FAILED: llama.cpp does not load {path}")
        params.n_ctx = params.n_batch = 2 * WINDOW
        params.n_threads = params.n_threads_batch = 2
        if f32_cache:
            params.type_k = params.type_v = 0  # GGML_TYPE_F32
            params.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED: it computes in F16 whatever the cache's type
        self.context = lc.llama_init_from_model(self.model, params)
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.batch = lc.llama_batch_init(WINDOW, 0, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)

    def run(self, ids, at):
        """Logits of ids, which stand behind the `at` tokens of the cache."""
        self.batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self.batch.token[i], self.batch.pos[i], self.batch.n_seq_id[i], self.batch.logits[i] = int(token), at + i, 1, 1
            self.batch.seq_id[i][0] = 0
        if lc.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("FAILED: llama_decode")
        return np.ctypeslib.as_array(lc.llama_get_logits(self.context), shape=(len(ids), self.vocab)).copy()

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def logits(self, windows, one_by_one=False):
        result = []
        for window in windows:
            self.clear()
            result.append(np.concatenate([self.run([token], i) for i, token in enumerate(window)]) if one_by_one else self.run(window, 0))
        return np.stack(result)

    def greedy(self, prompt):
        self.clear()
        ids, row = list(prompt), self.run(prompt, 0)[-1]
        while len(ids) < len(prompt) + NEW_TOKENS:
            ids.append(int(row.argmax()))
            row = self.run(ids[-1:], len(ids) - 1)[0]
        return ids[len(prompt):]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(first, second):
    """Share of positions with the same most likely token, and the mean KL of `second` from `first`."""
    return float((first.argmax(-1) == second.argmax(-1)).mean()), float((np.exp(first) * (first - second)).sum(-1).mean())


class Check:
    def __init__(self, fathom, model, folder, threads):
        self.fathom, self.model, self.folder, self.threads = fathom, model, folder, threads
        self.failures, self.rows = [], []

    def ours(self, *command):
        done = subprocess.run([self.fathom, "--quiet", "--threads", str(self.threads), *map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"FAILED: {' '.join(map(str, command))}: {done.stderr}")
        return done.stdout

    def require(self, true, sentence):
        if not true:
            self.failures.append(sentence)
            print(f"FAILED: {sentence}")

    def write(self, kind, by_llama):
        path = self.folder / f"{kind}-{'llama' if by_llama else 'fathom'}.gguf"
        if not by_llama:
            self.ours("quantize", self.model, path, "--type", kind)
            return path
        return self.requantized(self.folder / "f32-fathom.gguf", path, kind)

    def requantized(self, source, path, kind):
        """`source` as llama.cpp's own quantizer reads it and writes it again."""
        params = lc.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = FTYPES[kind], 2, True
        status = lc.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
        if status != 0:
            raise SystemExit(f"FAILED: llama.cpp's quantizer does not make {kind} of {source.name}")
        return path

    def logits(self, path, ids, *options):
        given, answers = self.folder / "ids.safetensors", self.folder / "logits.safetensors"
        save_file({"input_ids": ids}, given)
        self.ours("dump", path, "--input-ids", given, "--out", answers, "--what", "logits", *options)
        return log_softmax(load_file(answers)["logits"])

    def greedy(self, path, prompts):
        with Llama(path, f32_cache=True) as llama:
            same = 0
            for prompt in prompts:
                out = self.ours("generate", path, "--prompt-ids", ",".join(map(str, prompt)), "-n", NEW_TOKENS, "--temperature", 0, "--repetition-penalty", 1, "--ignore-eos",
                                "--json")
                same += json.loads(out) == llama.greedy(prompt)
        print(f"{path.name}: {same} of {len(prompts)} prompts have the same {NEW_TOKENS} greedy tokens")
        self.require(same == len(prompts), f"{path.name}: the same greedy tokens")
        return same

    def measure(self, path, kind, ids, text):
        exact, ours, absorbed = self.logits(path, ids, "--dtype", "f32"), self.logits(path, ids), self.logits(path, ids, "--path", "absorbed")
        with Llama(self.requantized(path, self.folder / "unpacked.gguf", "f32"), f32_cache=True) as llama:
            unpacked = log_softmax(llama.logits(ids))
        few = ids[:4]
        with Llama(path, f32_cache=False) as llama:
            default = log_softmax(llama.logits(ids))
        with Llama(path, f32_cache=True) as llama:
            theirs, single = log_softmax(llama.logits(ids)), log_softmax(llama.logits(few, one_by_one=True))
        top = np.sort(exact, -1)
        clear = top[..., -1] - top[..., -2] > CLEAR
        row = {"file": path.name, "text": text, "positions": int(ids.size)}
        pairs = {"llama.cpp unpacked, exact": (exact, unpacked), "ours, exact": (exact, ours), "llama.cpp, exact": (exact, theirs), "ours, llama.cpp": (theirs, ours), "ours, llama.cpp F16 cache": (default, ours),
                 "ours absorbed, llama.cpp": (theirs, absorbed), "exact, llama.cpp": (theirs, exact), "llama.cpp F16, F32 cache": (default, theirs), "llama.cpp one by one, at once": (theirs[:len(few)], single)}
        for name, (first, second) in pairs.items():
            row[name] = compare(first, second)
        row["clear"] = float(clear.mean())
        row["ours, llama.cpp where clear"] = float((ours.argmax(-1) == theirs.argmax(-1))[clear].mean())
        self.rows.append(row)
        print(f"{path.name}, {row['positions']} positions of {text}")
        for name in pairs:
            print(f"  {name:32} {100 * row[name][0]:7.2f} %   KL {row[name][1]:.2e}")
        print(f"  {'ours, llama.cpp where clear':32} {100 * row['ours, llama.cpp where clear']:7.2f} %   of the {100 * row['clear']:.0f} % that exact prefers by {CLEAR}", flush=True)
        self.require(row["llama.cpp unpacked, exact"][0] >= 0.999, f"{path.name}, {text}: the same weights read from it")
        if kind == "f32":
            self.require(row["ours, llama.cpp"][0] >= 0.999, f"{path.name}, {text}: the same most likely token")
        else:
            self.require(row["ours, exact"][1] <= 1.5 * row["llama.cpp, exact"][1], f"{path.name}, {text}: as near to exact as llama.cpp")
            self.require(row["ours, llama.cpp where clear"] >= 0.99, f"{path.name}, {text}: the same most likely token where it is clear")


def text_of(check, options, path):
    """The text, or of no path what the model itself writes from fixed seeds."""
    if path:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
            return file.read(8 * options.tokens)
    print("no held-out text: what the model itself writes")
    return "\n".join(check.ours("generate", check.model, "--prompt", "Once upon a time", "-n", WINDOW, "--seed", seed, "--ignore-eos") for seed in range(options.tokens // WINDOW + 1))


def ids_of(check, options, path):
    """[windows, WINDOW] token ids."""
    done = subprocess.run([options.fathom, "tokenize", options.model], input=text_of(check, options, path), capture_output=True, encoding="utf-8", check=True)
    return np.array(done.stdout.split(), np.int32)[:options.tokens // WINDOW * WINDOW].reshape(-1, WINDOW)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fathom")
    parser.add_argument("model", nargs="?", default="models/stories")
    parser.add_argument("--text", type=Path, action="append", help="held-out text, also .xz; may come again (default: the story corpora beside the checkout)")
    parser.add_argument("--tokens", type=int, default=7168, help="of each text")
    parser.add_argument("--types", default="q8_0,q6_k,q4_k,q4_0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args()
    lc.llama_backend_init()
    quiet = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(quiet, None)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(options.fathom, options.model, Path(folder), options.threads)
        texts = options.text or [CORPORA / name for name in TEXTS if (CORPORA / name).exists()] or [None]
        ids = {path.name if path else "its own": ids_of(check, options, path) for path in texts}
        for kind in ["f32", *options.types.split(",")]:
            for by_llama in (False, True):
                path = check.write(kind, by_llama)
                for text, windows in ids.items():
                    if kind == "f32":
                        check.greedy(path, [window[:16 + 8 * i].tolist() for i, window in enumerate(windows[:PROMPTS])])
                    check.measure(path, kind, windows, text)
        if options.json:
            Path(options.json).write_text(json.dumps({"llama_cpp_python": lc.__version__, "rows": check.rows, "failures": check.failures}, indent=1) + "\n")
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    main()
