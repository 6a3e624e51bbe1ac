"""Commands that are killed at random moments, repeatedly, until one completes.

What they leave then is compared with an undisturbed run, bit for bit except for times. By default a
few kills show that all of it works; a campaign counts as many as wanted:

    TINYBNN_KILLS=300 TINYBNN_KILLS_REPORT=kills.json pytest -m kills -s tests/test_kills.py

``TINYBNN_KILLS_SEED`` chooses other moments (0).
"""

import collections
import contextlib
import hashlib
import http.server
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tinybnn import storage

pytestmark = [
    pytest.mark.kills,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL"),
]

KILLS = int(os.environ.get("TINYBNN_KILLS", "6"))
SEED = int(os.environ.get("TINYBNN_KILLS_SEED", "0"))
REPORT = os.environ.get("TINYBNN_KILLS_REPORT")
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
TEMPORARY = ".tinybnn-*.tmp"

# Clients that keep local batch norms and model versions; a server with one bit each way.
ROUNDS = """
import sys
import numpy as np
from tinybnn import datasets, federated, models, optim

def build():
    return models.mlp(64, (48,), 10, 0.1, rng=np.random.default_rng(3))

train, test = datasets.load("digits")
rule = federated.SignOfUpdate(0.01, both=True)
server = federated.Server(build(), rule, norm="local", seed=1)
clients = [
    federated.Client(
        k, train[part], build(), rule, norm="local", seed=1,
        optimizer=lambda parameters: optim.Adam(parameters, lr=0.001),
    )
    for k, part in enumerate(federated.iid(len(train), 8, rng=2))
]
federated.run_rounds(
    server, clients, 15, fraction=0.5, checkpoint=sys.argv[1], progress=False,
    validation=datasets.DataLoader(test, 1000),
)
"""


class Job(NamedTuple):
    """A command that resumes where it was killed.

    Attributes
    ----------
    arguments : list of str
        Python's arguments; FOLDER stands for the folder that the command writes to.
    once : tuple of str
        Patterns of files that are written once and never again.
    """

    arguments: list
    once: tuple = ()


def _tinybnn(*arguments, once=()):
    return Job(["-m", "tinybnn", *arguments], ("config.json", *once))


JOBS = {
    "train": _tinybnn(
        "train", "mlp", "--hidden", "64", "--dropout", "0.1", "--validation", "0.1", "--shift", "1",
        "--epochs", "30", "--quiet", "--json", "FOLDER/figures.json", "--out", "FOLDER/run",
        once=("run/config.json", "run/result.json"),
    ),
    "reproduce fedavg": _tinybnn(
        "reproduce", "fedavg", "--quick", "--arms", "2nn,binary-sign-frozen", "--rounds", "6",
        "--quiet", "--out", "FOLDER",
        once=("*-iid.json", "*-shards.json"),
    ),
    "reproduce mnist-mlp": _tinybnn(
        "reproduce", "mnist-mlp", "--dataset", "digits", "--epochs", "5", "--seeds", "2",
        "--out", "FOLDER",
        once=("*/config.json", "*/result.json"),
    ),
    "reproduce fedhybnn": _tinybnn(
        "reproduce", "fedhybnn", "--quick", "--limit", "200", "--rounds", "1", "--epochs-vae", "8",
        "--quiet", "--out", "FOLDER",
        once=("seed-0/task-*.json", "seed-0/codes-*.npz"),
    ),
    "federated rounds": Job(["-c", ROUNDS, "FOLDER/rounds.npz"]),
}  # fmt: skip

# Kills are assigned in this order: a third each for train, reproduce and federated rounds.
ORDER = [
    "train", "reproduce fedavg", "federated rounds",
    "train", "reproduce fedavg", "federated rounds",
    "train", "reproduce mnist-mlp", "federated rounds",
    "train", "reproduce fedhybnn", "federated rounds",
]  # fmt: skip
SHARES = collections.Counter(itertools.islice(itertools.cycle(ORDER), KILLS))


@pytest.fixture(scope="module")
def rows():
    """One row of counts for each test; the table is printed at the end."""
    rows, start = [], time.perf_counter()
    yield rows
    columns = ["job", "kills", "runs", "whole files read", "left by kills", "left at the end",
               "differences", "seconds"]  # fmt: skip
    cells = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print()
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    if REPORT:
        report = {
            "command": f"TINYBNN_KILLS={KILLS} TINYBNN_KILLS_SEED={SEED} pytest -m kills",
            "kills": KILLS, "seed": SEED, "seconds": round(time.perf_counter() - start),
            "rows": rows,
        }  # fmt: skip
        Path(REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------- what a folder holds


# Times; and the state of the default generator, which no command seeds or draws from.
VARIES = ("seconds", "train_seconds", "date", "default")


def repeatable(value):
    """Nested dicts and lists without what differs between two undisturbed runs."""
    if isinstance(value, dict):
        return {k: repeatable(v) for k, v in value.items() if k not in VARIES}
    return [repeatable(item) for item in value] if isinstance(value, list) else value


def stored(path):
    """Arrays and metadata of any file that `storage` wrote."""
    header = storage.read_header(path)
    arrays, metadata = storage.load(path, kind=header["kind"], version=header["version"])
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}, metadata


def content(path):
    """A file's content except times, ready for `==`; raises if it is not whole."""
    if path.suffix == ".npz":
        return repeatable(list(stored(path)))
    if path.suffix == ".json":
        return repeatable(json.loads(path.read_text(encoding="utf-8")))
    data = path.read_bytes()
    if path.suffix == ".png":
        assert data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82"), path
    elif path.suffix == ".md":
        assert data.endswith(b"\n"), path
        return re.sub(rb"\d+", b"0", data)  # figures include times, and JSON files hold figures
    return data


def files(folder):
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}


def contents(folder):
    return {
        name: content(path) for name, path in files(folder).items() if not path.match(TEMPORARY)
    }


def progress(folder, once):
    """Work that must not be repeated: final files and rows of histories.

    Rows hold the seconds that an epoch or round took, which tell it from a repetition.
    """
    histories = {}
    for name, path in files(folder).items():
        if any(Path(name).match(pattern) for pattern in once):
            histories[name] = [(path.stat().st_ino, path.stat().st_mtime_ns)]
        elif path.suffix == ".npz":
            histories[name] = stored(path)[1].get("history", [])
    return histories


def lost(before, after):
    """Names of entries that were there before but are missing or different afterwards."""
    return [
        f"{name} was written again" for name, rows in before.items()
        if after.get(name, [])[: len(rows)] != rows
    ]  # fmt: skip


def different(expected, actual):
    """Names of files that differ, are missing or should not be there."""
    names = sorted({*expected, *actual})
    return [f"{name} differs" for name in names if expected.get(name) != actual.get(name)]


# ----------------------------------------------------------------------------------- the commands


def start(job, folder):
    folder.mkdir(exist_ok=True)
    arguments = [text.replace("FOLDER", str(folder)) for text in job.arguments]
    return subprocess.Popen(
        [sys.executable, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process):
    """Whether a process ended normally; any end other than that or a kill is an error."""
    _, error = process.communicate(timeout=600)
    assert process.returncode in (0, -signal.SIGKILL), error
    assert "Traceback" not in error, error
    return process.returncode == 0


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_random(name, tmp_path, rows):
    """Kill at any moment of an undisturbed run's time; the last process is left alone."""
    if not SHARES[name]:
        pytest.skip("all kills went to the others: TINYBNN_KILLS=12 reaches all")
    job, draw, begin = JOBS[name], random.Random(f"{SEED} {name}"), time.perf_counter()
    assert ended(start(job, tmp_path / "undisturbed"))
    longest = time.perf_counter() - begin
    expected = contents(tmp_path / "undisturbed")
    row = collections.Counter({"left by kills": 0, "left at the end": 0})
    differences = []
    while row["kills"] < SHARES[name]:
        folder, before, lives = tmp_path / f"run-{row['runs']}", {}, 0
        while True:
            process, born = start(job, folder), time.perf_counter()
            if row["kills"] < SHARES[name]:
                try:
                    process.wait(draw.uniform(0, longest))
                except subprocess.TimeoutExpired:
                    process.kill()
            is_done, lives = ended(process), lives + 1
            after = progress(folder, job.once)
            differences += [f"run {row['runs']}: {text}" for text in lost(before, after)]
            before = after
            if is_done:
                break
            row["kills"] += 1
            row["left by kills"] += len(list(folder.rglob(TEMPORARY)))
            row["whole files read"] += len(contents(folder))
        if lives == 1:  # the undisturbed run may have waited for a compiler
            longest = min(longest, time.perf_counter() - born)
        left = [str(path) for path in folder.rglob(TEMPORARY)]
        row["left at the end"] += len(left)
        for text in different(expected, contents(folder)):
            differences.append(f"run {row['runs']}: {text}")
        for path in folder.rglob(".lock"):
            with open(path, "ab") as file:
                assert storage.try_lock(file), path
        row["runs"] += 1
    seconds = round(time.perf_counter() - begin)
    rows.append({"job": name, **row, "differences": len(differences), "seconds": seconds})
    assert not differences and not row["left at the end"], (differences, left)


# ------------------------------------------------------------------------------- nothing but writes

# Two processes write the same file without a pause. One of them is killed at a random moment, and
# replaced: the file is whole, and the other never fails.
WRITERS = """
import json, os, random, signal, sys, time
import numpy as np
from tinybnn import storage

folder, kills, draw = sys.argv[1], int(sys.argv[2]), random.Random(sys.argv[3])
path = os.path.join(folder, "x.npz")

def write(number):
    arrays = {"x": np.full(50_000, number)}
    storage.save(path, arrays, kind="test", version=1, metadata={"number": number})

parent = os.getpid()

def writer(number):
    if child := os.fork():
        return child
    try:
        while os.getppid() == parent:
            write(number)
    finally:
        os._exit(1)

write(0)
writers, left = [writer(1), writer(2)], 0
for number in range(3, 3 + kills):
    time.sleep(draw.uniform(0, 0.03))
    victim = writers.pop(draw.randrange(2))
    os.kill(victim, signal.SIGKILL)
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL, "a writer failed"
    arrays, metadata = storage.load(path, kind="test", version=1)
    assert (arrays["x"] == metadata["number"]).all()
    writers.append(writer(number))
for victim in writers:
    os.kill(victim, signal.SIGKILL)
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL, "a writer failed"
    left += len(os.listdir(folder)) - 1
write(0)
print(json.dumps({"left": left, "files": os.listdir(folder)}))
"""


def test_writers_of_one_file(tmp_path, rows):
    kills, begin = 10 * KILLS, time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(tmp_path), str(kills), str(SEED)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=600 + kills, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    seconds = round(time.perf_counter() - begin)
    rows.append({
        "job": "two writers of one file", "kills": kills + 2, "whole files read": kills,
        "left at the end": len(report["files"]) - 1, "differences": 0, "seconds": seconds,
    })  # fmt: skip
    assert report["files"] == ["x.npz"]


DOWNLOAD = """
import sys
from pathlib import Path
from tinybnn.datasets.download import RemoteFile, fetch_file

url, target, size, md5 = sys.argv[1:]
fetch_file(url, Path(target), RemoteFile("data.bin", int(size), md5), progress=False)
"""
CONTENT = random.Random(0).randbytes(500_000)


class SlowHandler(http.server.BaseHTTPRequestHandler):
    """Sends `CONTENT`, or the rest of it, at about 3 MB per second."""

    def do_GET(self):
        begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.begins.append(begin)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        if begin:
            text = f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"
            self.send_header("Content-Range", text)
        self.end_headers()
        for i in range(begin, len(CONTENT), 8000):
            self.wfile.write(CONTENT[i : i + 8000])
            time.sleep(0.002)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # by a killed client
            super().handle()

    def log_message(self, *arguments):
        """Print nothing."""


def test_downloads(tmp_path, rows):
    """Each process continues after the last byte that the killed one wrote."""
    draw, begin = random.Random(SEED), time.perf_counter()
    target, part = tmp_path / "data.bin", tmp_path / "data.bin.part"
    runs, kills, parts, left = 0, 0, 0, 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler) as server:
        server.begins = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/data.bin"
        job = Job(["-c", DOWNLOAD, url, str(target), str(len(CONTENT)), md5])
        while kills < KILLS:
            size = 0
            server.begins.clear()
            while True:
                process = start(job, tmp_path)
                if kills < KILLS:
                    try:
                        process.wait(draw.uniform(0, 0.6))
                    except subprocess.TimeoutExpired:
                        process.kill()
                if ended(process):
                    break
                kills += 1
                assert set(os.listdir(tmp_path)) <= {"data.bin", "data.bin.part"}
                if part.exists():
                    data, parts = part.read_bytes(), parts + 1
                    assert len(data) >= size and CONTENT.startswith(data)
                    size = len(data)
            assert target.read_bytes() == CONTENT
            assert server.begins == sorted(server.begins)
            left += len(os.listdir(tmp_path)) - 1
            target.unlink()
            runs += 1
        server.shutdown()
    seconds = round(time.perf_counter() - begin)
    rows.append({
        "job": "downloads", "kills": kills, "runs": runs, "left by kills": parts,
        "left at the end": left, "differences": 0, "seconds": seconds,
    })  # fmt: skip
    assert left == 0
