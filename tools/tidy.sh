#!/usr/bin/env bash
# clang-tidy for at most FATHOM_TIDY_SECONDS (default 330): the files that the last commits touched first, so that the bound
# leaves out old ones only. Findings fail; running out of time does not.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

if [[ ${1:-} == --one ]]; then  # what xargs runs below
    [[ $(date +%s) -lt $2 ]] || exit 0
    clang-tidy-19 -p build/dev --quiet "$3" 2>/dev/null || { echo "clang-tidy: findings in $3" && exit 1; }
    echo "$3 ok"
    exit 0
fi

[[ -f build/dev/compile_commands.json ]] || cmake --preset dev >/dev/null
end=$(($(date +%s) + ${FATHOM_TIDY_SECONDS:-330}))
{ git log -n 20 --name-only --format= -- 'src/*.cpp' 2>/dev/null && git ls-files 'src/*.cpp'; } |
    awk 'NF && !seen[$0]++' | while read -r file; do if [[ -f $file ]] && grep -q "/$file\"" build/dev/compile_commands.json; then echo "$file"; fi; done |
    xargs -P "$(nproc)" -n 1 tools/tidy.sh --one "$end"
