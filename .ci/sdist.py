"""Check that a source distribution contains every file that git tracks.

usage: python .ci/sdist.py dist/tinybnn-*.tar.gz
"""

import subprocess
import sys
import tarfile

LEFT_OUT = {".gitignore"}  # useless without git

with tarfile.open(sys.argv[1]) as archive:
    held = {name.partition("/")[2] for name in archive.getnames()}
listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True)
tracked = set(filter(None, listed.stdout.split("\0")))
if missing := sorted(tracked - held - LEFT_OUT):
    sys.exit(f"{sys.argv[1]} has no {', '.join(missing)}; see MANIFEST.in")
print(f"{len(tracked - LEFT_OUT)} tracked files are in {sys.argv[1]}")
