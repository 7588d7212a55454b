"""Compares `fathom tokenize` with the Hugging Face `tokenizers` package, line by line over text files.

    python tools/check_tokenizer.py build/fathom models/stories TEXT_FILE...

Exit code 1 at the first line whose ids differ.
"""

import json
import pathlib
import subprocess
import sys

from tokenizers import Tokenizer


def main() -> int:
    fathom, folder, *files = sys.argv[1:]
    reference = Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
    lines = ["", " ", "<｜User｜>2+2?<｜Assistant｜><think>hm</think>4", "Ünïcode 猫 😀 12345\r\n\n  x"]
    for file in files:
        lines += pathlib.Path(file).read_text(encoding="utf-8").splitlines(keepends=True)
    stdin = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    run = subprocess.run(
        [fathom, "tokenize", folder, "--jsonl"],
        input=stdin.encode(), stdout=subprocess.PIPE, check=True,
    )
    ours = [json.loads(line)["ids"] for line in run.stdout.splitlines()]
    theirs = reference.encode_batch(lines, add_special_tokens=False)
    if len(ours) != len(lines):
        print(f"{len(lines)} lines went in, {len(ours)} came out")
        return 1
    for line, ids, expected in zip(lines, ours, theirs):
        if ids != expected.ids:
            print(f"different ids for {line!r}:\n  fathom     {ids}\n  tokenizers {expected.ids}")
            return 1
    print(f"{len(lines)} texts, {sum(map(len, ours))} tokens: all ids equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
