#!/usr/bin/env bash
# Checks against the reference Python packages, in a virtual environment of their own under build/.
#   tools/python_checks.sh BUILD_FOLDER [--full]
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
[[ $# -ge 1 ]] || { echo "usage: $0 BUILD_FOLDER [--full]" >&2 && exit 2; }
build=$1
shift

readonly kVenv=build/python-venv
readonly kPackages=(numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3)
if [[ ! -f $kVenv/ready ]]; then
    python3 -m venv "$kVenv"
    "$kVenv/bin/pip" install --quiet --disable-pip-version-check "${kPackages[@]}"
    touch "$kVenv/ready"
fi

failed=0
again=$(mktemp -d)
trap 'rm -rf "$again"' EXIT
for model in tests/data/fixtures/* tests/data/v1-tiny* tests/data/configs_extra/* models/*; do
    [[ -f $model/config.json ]] || continue
    echo "--- load, save, compare: $model"
    rm -rf "$again/model"
    { "$build/fathom" convert "$model" "$again/model" --quiet >/dev/null && "$kVenv/bin/python" tools/check_roundtrip.py "$model" "$again/model"; } || failed=1
done
echo "--- tokenizers"
"$kVenv/bin/python" tools/check_tokenizer.py "$build/fathom" "$@" || failed=1
exit "$failed"
