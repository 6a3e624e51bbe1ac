"""Check how many public names of the installed package have known types, by pyright.

usage: python .ci/typed.py
"""

import json
import subprocess
import sys

LEAST = 95.0  # percent

command = ["pyright", "--pythonpath", sys.executable, "--verifytypes", "tinybnn"]
run = subprocess.run(
    [sys.executable, "-m", *command, "--ignoreexternal", "--outputjson"],
    stdout=subprocess.PIPE,
    text=True,
    check=False,
)
try:
    score = 100 * json.loads(run.stdout)["typeCompleteness"]["completenessScore"]
except (ValueError, KeyError):
    sys.exit(f"pyright gave no score:\n{run.stdout[-2000:]}")
print(f"{score:.1f}% of the public names have known types, {LEAST}% are required")
if score < LEAST:
    sys.exit("`pyright --verifytypes tinybnn --ignoreexternal` lists the others")
