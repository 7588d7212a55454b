#!/usr/bin/env bash
# The tests of preset asan, built before; arguments go to ctest.
# LeakSanitizer's own tracer dies once in some hundred programs ("Tracer caught signal 11", google/sanitizers issue 1353), after every test has
# passed. A program that only this ended is run a second time, and said so; any other failure stands.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
report=$PWD/build/asan/ctest.xml
ctest --preset asan --output-junit "$report" "$@" && exit
python3 - "$report" <<'PYTHON' || exit 1
import sys
import xml.etree.ElementTree as ET

failed = [case for case in ET.parse(sys.argv[1]).iter("testcase") if case.get("status") == "fail"]
output = {case.get("name"): case.findtext("system-out") or "" for case in failed}
tracer = [name for name, text in output.items()
          if "LeakSanitizer has encountered a fatal error" in text and "[  PASSED  ]" in text and "[  FAILED  ]" not in text]
if not failed or len(tracer) < len(failed):
    sys.exit(1)
print("once more, because only LeakSanitizer's tracer died after all had passed:", *tracer, flush=True)
PYTHON
ctest --preset asan --rerun-failed
