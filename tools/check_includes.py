#!/usr/bin/env python3
"""The house rules a script can see: includes follow the arrows, files and functions stay short.

Every folder of src/ may include itself and what its row below reaches (rows are closed under reachability). The same table
stands in CMakeLists.txt as link dependencies.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARROWS = {
    "base": [],
    "tensor": ["base"],
    "ops": ["tensor"],
    "cpu": ["ops"],
    "cuda": ["ops"],
    "quant": ["ops"],
    "nn": ["ops"],
    "model": ["nn"],
    "io": ["tensor"],
    "checkpoint": ["model", "quant", "io"],
    "train": ["checkpoint"],
    "infer": ["model"],
    "rl": ["train", "infer"],
    "serve": ["infer", "io"],
    "app": ["serve", "rl", "train", "infer", "checkpoint", "io", "cpu"],
}
MAX_FILE, MAX_FUNCTION = 500, 60


def reach(folder):
    seen, todo = set(), [folder]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += ARROWS[name]
    return seen


def check_includes(path, lines):
    folder = path.relative_to(ROOT / "src").parts[0]
    if folder not in ARROWS:
        yield f"{path}: folder {folder} has no row in tools/check_includes.py"
        return
    allowed = reach(folder)
    for number, line in enumerate(lines, 1):
        found = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if not found:
            continue
        target = found.group(1).split("/")[0]
        if target not in allowed:
            yield f"{path}:{number}: {folder} may not include {found.group(1)}"
        elif not (ROOT / "src" / found.group(1)).is_file():
            yield f"{path}:{number}: include paths start at src/: {found.group(1)}"


def check_conditions(path, lines):
    for number, line in enumerate(lines, 1):
        if re.match(r"\s*#\s*(if|ifdef|ifndef)\b", line):
            yield f"{path}:{number}: conditional compilation: choose at run time, or by the file that CMake compiles"


def check_sizes(path, lines):
    if len(lines) > MAX_FILE:
        yield f"{path}: {len(lines)} lines, more than {MAX_FILE}"
    # clang-format puts the braces of a function on lines of its own indentation; namespaces do not indent.
    start = {}
    for number, line in enumerate(lines, 1):
        indent = len(line) - len(line.lstrip())
        text = line.strip()
        if indent not in (0, 4):
            continue
        opens = text.endswith("{") and not re.match(r"(namespace|class|struct|enum|union|extern|template <.*> (class|struct))\b", text)
        if opens and (")" in text) and not text.startswith(("}", "if ", "for ", "while ", "switch ", "do ", "else")):
            start[indent] = number
        elif text.startswith("}") and indent in start:
            length = number - start.pop(indent) + 1
            if length > MAX_FUNCTION:
                yield f"{path}:{number - length + 1}: a function of {length} lines, more than {MAX_FUNCTION}"


def main():
    files = sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in (".h", ".cpp"))
    problems = []
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        for check in (check_includes, check_conditions, check_sizes):
            problems += check(path, lines)
    for problem in problems:
        print(problem.replace(f"{ROOT}/", ""))
    print(f"{len(files)} files, {sum(len(p.read_text(encoding='utf-8').splitlines()) for p in files)} lines, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
