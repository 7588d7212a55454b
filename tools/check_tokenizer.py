#!/usr/bin/env python3
"""Compare `fathom tokenize` with the Hugging Face package `tokenizers`, id by id, and load what `fathom tokenizer train` writes.

usage: check_tokenizer.py BINARY [--full] [FOLDER TEXT_FILE...]

Tokenizers: that of FOLDER; without one, a tokenizer trained here from this repository's own texts, that of models/stories, and those of
../shared/data/tokenizers where they exist. Texts: the lines of the files; without any, this repository's documents; and always random
strings over scripts, spaces, controls and chat tokens (--full: twenty times as many).
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
PIECES = (
    [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "0", "12", "12345", "3.14", "a", "The", "the", "don't", "I'LL", "été", "naïve"]
    + ["中文", "漢字", "ひらがな", "カタカナ", "한국어", "Привет", "γειά", "שלום", "مرحبا", "हिन्दी", "ไทย", "👍", "👩‍👩‍👧", "🇩🇪", "e\u0301"]
    + ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜User", "{", "}", "();", "==", "//", "\\n", "…", "—", "«", "»", "½", "²", "_", "\x00", "\x7f", "\ufeff", "\u200d", "\U00020000"]
)


def texts(files, count):
    if files:
        result = [line for path in files for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
    else:
        documents = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("src/nn/*.cpp"))
        result = [path.read_text(encoding="utf-8") for path in documents]
    rng = random.Random(1)
    for _ in range(count):
        result.append("".join(rng.choice(PIECES) for _ in range(rng.randint(0, 40))))
    return result


def fathom_ids(binary, tokenizer, lines):
    request = "".join(json.dumps({"text": text}) + "\n" for text in lines)
    answer = subprocess.run([binary, "tokenize", str(tokenizer), "--jsonl", "--quiet"], input=request.encode(), capture_output=True, check=True)
    return [json.loads(line)["ids"] for line in answer.stdout.decode().splitlines()]


def compare(binary, path, lines):
    reference = Tokenizer.from_file(str(path))
    expected = [encoding.ids for encoding in reference.encode_batch(lines, add_special_tokens=False)]
    got = fathom_ids(binary, path, lines)
    wrong = [i for i in range(len(lines)) if i >= len(got) or got[i] != expected[i]]
    for i in wrong[:3]:
        print(f"  {lines[i]!r}\n    expected {expected[i]}\n    got      {got[i] if i < len(got) else None}")
    print(f"{path.parent.name}: {len(lines)} texts, {sum(map(len, expected))} tokens, {len(wrong)} different")
    return not wrong and len(got) == len(lines)


def train(binary, lines, folder):
    corpus = folder / "corpus.txt"
    corpus.write_text("\n<|endoftext|>\n".join(lines), encoding="utf-8")
    command = [binary, "tokenizer", "train", str(corpus), "--vocab-size", "2000", "--out", str(folder / "trained"), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "trained/tokenizer.json"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("folder", nargs="?", type=pathlib.Path)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    lines = texts(arguments.files, 40000 if arguments.full else 2000)
    ok = True
    with tempfile.TemporaryDirectory() as folder:
        if arguments.folder:
            found = [arguments.folder / "tokenizer.json"]
        else:
            found = [train(arguments.binary, lines, pathlib.Path(folder)), ROOT / "models/stories/tokenizer.json"]
            found += sorted((ROOT / "../shared/data/tokenizers").glob("*/tokenizer.json"))
        for path in found:
            if path.exists():
                ok &= compare(arguments.binary, path, lines)
            else:
                print(f"{path.parent.name}: not there, not compared")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
