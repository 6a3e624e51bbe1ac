"""Execute the tutorials: each text twin (NN_name.py, jupytext py:percent) and its notebook.

python tutorials/build.py [NAME ...]          execute the twins and store notebooks with outputs
python tutorials/build.py --check [NAME ...]  execute the notebooks and fail if one differs from its
                                              twin or does not run; two at a time

Needs the extra `tutorials` (jupytext, nbclient, ipykernel). Notebooks run in a temporary folder, so
that they see the installed package and leave nothing behind; the exercise files `mybnn` lie in it,
as in the folder of a student who begins.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent


def cells(notebook):
    """What a reader edits: the kind and the source of each cell."""
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def execute(notebook, name):
    """Run all cells; outputs are stored in the notebook."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER / "mybnn", Path(folder, "mybnn"))
        client = NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        start = time.perf_counter()
        client.execute()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def tidy(notebook):
    """Drop what changes from run to run, so that a stored notebook changes only with its text."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
        cell.metadata = {}


def build(name, check):
    """Execute a tutorial; returns what is wrong with it, "" if nothing is."""
    twin, path = FOLDER / f"{name}.py", FOLDER / f"{name}.ipynb"
    notebook = jupytext.read(twin)
    stored = cells(jupytext.read(path)) if path.exists() else None
    if check and stored != cells(notebook):
        return f"{name}: the notebook differs from its twin; run {Path(__file__).name}"
    try:
        execute(notebook, name)
    except CellExecutionError as error:
        return f"{name}: {error}"
    if not check:
        tidy(notebook)
        jupytext.write(notebook, path, fmt="ipynb")
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="e.g. 03_first_binary_network (default: all)")
    parser.add_argument("--check", action="store_true", help="change nothing, fail on differences")
    options = parser.parse_args()
    names = options.names or [p.stem for p in sorted(FOLDER.glob("[0-9]*.py"))]
    # The kernel of the environment that runs this script, whatever others are registered.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # What is stored holds measured times, so nothing else runs meanwhile.
    with ThreadPoolExecutor(2 if options.check else 1) as pool:
        problems = list(pool.map(lambda name: build(name, options.check), names))
    for problem in filter(None, problems):
        print(problem)
    return 1 if any(problems) else 0


if __name__ == "__main__":
    sys.exit(main())
