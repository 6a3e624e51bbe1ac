"""Commands that are killed at any moment and repeated end as if nobody had killed them.

A campaign starts commands, kills them (SIGKILL) after a random share of the time that they need,
repeats them, perhaps kills them again, and lets them end. Then every file is held against that of
an undisturbed run, and nothing may be left over. The tests do it a few times;

    TINYBNN_KILLS=400 pytest -m kills -s

does it that often and prints the counts.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinybnn import storage

pytestmark = [
    pytest.mark.kills,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL"),
]

KILLS = int(os.environ.get("TINYBNN_KILLS", 8))
SEED = int(os.environ.get("TINYBNN_KILLS_SEED", 0))
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path])),
    "OPENBLAS_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
}

ROUNDS = """
import sys
from pathlib import Path
import test_federated_rounds as t
from tinybnn.federated import FedAvg

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
server, clients = t.federation(FedAvg(), samples=600)
t.rounds(server, clients, 25, batch_size=4, checkpoint=folder / "rounds.npz")
"""


def tinybnn(*words):
    return lambda folder: [sys.executable, "-m", "tinybnn", *words, "--out", str(folder)]


COMMANDS = {
    "train": tinybnn(
        "train", "mlp", "--hidden", "64", "--epochs", "60", "--batch-size", "16", "--quiet"
    ),
    "reproduce": tinybnn(
        "reproduce", "fedavg", "--dataset", "digits", "--quick", "--quiet",
        "--arms", "2nn,binary-sign",
    ),
    "rounds": lambda folder: [sys.executable, "-c", ROUNDS, str(folder)],
}  # fmt: skip


def start(command):
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    """Whether it was killed; a process that ends by itself ends well."""
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode != 0


def timeless(value):
    """What a JSON value says besides times and the default generator, which has no seed here."""
    if isinstance(value, dict):
        return {
            key: timeless(item)
            for key, item in value.items()
            if "seconds" not in key and key not in ("machine", "default")
        }
    return [timeless(item) for item in value] if isinstance(value, list) else value


def content(folder):
    """Path -> what the file holds; of pictures and reports, which show times, the suffix."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".npz":
            header = storage.read_header(path)
            arrays, _ = storage.load(path, kind=header["kind"], version=header["version"])
            found[name] = (
                {key: array.tobytes() for key, array in arrays.items()},
                timeless(header["metadata"]),
            )
        else:
            found[name] = path.suffix
    return found


@pytest.mark.parametrize("kind", COMMANDS)
def test_killed_commands_end_as_undisturbed_ones(kind, tmp_path):
    command, draw = COMMANDS[kind], random.Random(f"{SEED} {kind}")
    seconds = []
    for name in ("warm", "whole"):  # the first may compile kernels
        begin = time.perf_counter()
        assert not finish(start(command(tmp_path / name)))
        seconds.append(time.perf_counter() - begin)
    expected = content(tmp_path / "whole")
    counts = {"kills": 0, "runs": 0, "different": 0}
    while counts["kills"] < KILLS // 4:
        folder = tmp_path / f"run-{counts['runs']}"
        for _ in range(min(draw.randint(1, 4), KILLS // 4 - counts["kills"])):
            process = start(command(folder))
            time.sleep(draw.uniform(0, min(seconds)))
            process.kill()
            counts["kills"] += finish(process)
        assert not finish(start(command(folder)))
        counts["runs"] += 1
        found = content(folder)
        counts["different"] += found != expected
        assert found.keys() == expected.keys(), "files are missing or left over"
        for name, value in expected.items():
            assert found[name] == value, name
    print(f"\n{kind}: {counts}")


SAVES = """
import sys
import numpy as np
from tinybnn import storage

print("ready", flush=True)
number = 0
while True:
    number += 1
    array = np.full(200_000, number, np.int32)
    storage.save(sys.argv[1], {"array": array}, kind="test", version=1, metadata={"number": number})
"""


def test_killed_writers_leave_the_old_or_the_new_file(tmp_path):
    path, draw = tmp_path / "file.npz", random.Random(SEED)
    left = 0
    for _ in range(max(2, KILLS // 4)):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES, str(path)], env=ENVIRONMENT, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        left += len(os.listdir(tmp_path)) - path.exists()
        if path.exists():  # the process's, or ours of the turn before
            arrays, metadata = storage.load(path, kind="test", version=1)
            assert np.all(arrays["array"] == metadata["number"])
        empty = {"array": np.zeros(0)}
        storage.save(path, empty, kind="test", version=1, metadata={"number": 0})
        assert os.listdir(tmp_path) == ["file.npz"]
    print(f"\nsaves: {max(2, KILLS // 4)} kills, {left} temporary files left and removed")


def test_living_writers_keep_their_temporary_files(tmp_path):
    """While a file is written, others write the same one and clear up."""
    path = tmp_path / "file"

    def write(file):
        storage.write_atomic(path, b"other")
        storage.remove_leftovers(tmp_path)
        file.write(b"first")

    storage.write_atomic(path, write)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_leftovers_of_other_files_stay(tmp_path):
    with storage._temporary_file(tmp_path, "other") as file:
        left = Path(file.name)
    os.mkfifo(tmp_path / f"{storage._temporary_start('file')}.tmp")  # opening it would wait
    storage.write_atomic(tmp_path / "file", b"content")
    assert left.exists()
    storage.write_atomic(tmp_path / "other", b"content")
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"file", "other"}


FULL = """
import resource, signal, sys
from tinybnn import storage

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_atomic(sys.argv[1], bytes(5000))
except OSError as error:
    print(error)
"""


def test_a_write_that_finds_no_room_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert "cannot write the file (File too large)" in done.stdout, done.stderr
    assert str(path) in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
