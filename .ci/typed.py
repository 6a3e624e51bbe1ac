"""Check how many public names of the installed package have known types, by pyright.

usage: python .ci/typed.py
"""

import json
import os
import subprocess
import sys

LEAST = 95.0  # percent
NOT_OURS = "tinybnn.tutorials."  # files that students complete

# pyright takes the packages of the first `python` in PATH; with --verifytypes, its option
# --pythonpath has no effect.
folder = os.path.dirname(sys.executable)
run = subprocess.run(
    ["pyright", "--verifytypes", "tinybnn", "--ignoreexternal", "--outputjson"],
    env=os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
    stdout=subprocess.PIPE,
    text=True,
    check=False,
)
try:
    symbols = json.loads(run.stdout)["typeCompleteness"]["symbols"]
except (ValueError, KeyError):
    sys.exit(f"pyright gave no report:\n{run.stdout[-2000:]}")
public = [s for s in symbols if s["isExported"] and not s["name"].startswith(NOT_OURS)]
if not public:
    sys.exit("pyright finds no public name of tinybnn: is it installed in this environment?")
known = sum(s["isTypeKnown"] and not s["isTypeAmbiguous"] for s in public)
score = 100 * known / len(public)
print(f"{score:.1f}% of {len(public)} public names have known types, {LEAST}% are required")
if score < LEAST:
    sys.exit("`pyright --verifytypes tinybnn --ignoreexternal` lists the others")
