#!/usr/bin/env bash
# Checks against the reference Python packages, in a virtual environment of their own under build/.
#   tools/python_checks.sh BINARY [--full]
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
[[ $# -ge 1 ]] || { echo "usage: $0 BINARY [--full]" >&2 && exit 2; }

readonly kVenv=build/python-venv
readonly kPackages=(numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3)
if [[ ! -f $kVenv/ready ]]; then
    python3 -m venv "$kVenv"
    "$kVenv/bin/pip" install --quiet "${kPackages[@]}"
    touch "$kVenv/ready"
fi

failed=0
for check in tools/check_roundtrip.py tools/check_tokenizer.py; do
    echo "--- $check"
    "$kVenv/bin/python" "$check" "$@" || failed=1
done
exit "$failed"
