"""Flower's processes on this machine: a SuperLink, and the runs of an app.

Every process started here listens on 127.0.0.1 only, sends no telemetry, checks for no updates and
installs nothing; it keeps its files in a folder of its own (`FLWR_HOME`) and ends with the block
that started it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

APP: Path = Path(__file__).parent / "flower_app"
HOST: str = "127.0.0.1"

# Keeps Flower and Ray from listening, answering or reporting to other machines.
ENVIRONMENT: dict[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without "clusters" Ray replaces the given address by 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "NO_PROXY": HOST,
    "no_proxy": HOST,
}
_TAIL = 20  # lines of a log in an error


class LaunchError(OSError):
    """A process of Flower did not start, or its run failed; the message has the end of its log."""


def new_app(folder: str | os.PathLike[str]) -> None:
    """Copy the app of this package, as a start for your own.

    Raises
    ------
    ValueError
        If the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(APP, folder, ignore=ignore, dirs_exist_ok=True)


class Network:
    """A SuperLink and further processes, for the length of a ``with`` block.

    Parameters
    ----------
    home : path
        Folder for all files of Flower and the logs of the processes.
    superlink : sequence of str
        Options of ``flower-superlink``; by default it simulates the nodes. Without encryption, as
        by default, a network must not leave this machine.
    connection : dict, optional
        Settings of the connection to it in Flower's ``config.toml``.

    Attributes
    ----------
    home : Path
    address : str
        Host and port of the SuperLink.
    """

    def __init__(
        self,
        home: str | os.PathLike[str],
        superlink: Sequence[str] = ("--simulation", "--insecure"),
        connection: Mapping[str, Any] | None = None,
    ) -> None:
        self.home: Path = Path(home)
        self.address: str = f"{HOST}:{free_port()}"
        self._superlink, self._processes = superlink, contextlib.ExitStack()
        self._connection = {"insecure": True} if connection is None else connection

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("Network: running processes cannot be copied; start another Network")

    def __enter__(self) -> Network:
        self.home.mkdir(parents=True, exist_ok=True)
        settings = {"address": self.address, **self._connection}
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        config = ["[superlink]", 'default = "here"', "", "[superlink.here]", *lines, ""]
        (self.home / "config.toml").write_text("\n".join(config), encoding="utf-8")
        host, port = self.address.split(":")
        try:
            process = self.start(
                "flower-superlink", ["--host", host, "--port", port, *self._superlink]
            )
            self._wait_for_superlink(process, (host, int(port)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._processes.close()

    def start(
        self, tool: str, arguments: Sequence[str], name: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program of Flower, in a process group of its own.

        Its output goes to the file ``NAME.log``; by default the name is that of the program.
        """
        with open(self.home / f"{name or tool}.log", "ab") as log:
            return self._start(tool, arguments, stdout=log)

    def run(
        self,
        app: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        federation: Mapping[str, Any] | None = None,
        *,
        timeout: float = threading.TIMEOUT_MAX,
        say: Callable[[str], object] | None = None,
    ) -> None:
        """Run an app to its end.

        Parameters
        ----------
        app : path
            Folder with a pyproject.toml.
        config : dict, optional
            Changes to the configuration of the app.
        federation : dict, optional
            Settings of the simulation, such as ``num-supernodes``.
        timeout : float
            Seconds after which the run is stopped.
        say : callable, optional
            Called with each line of the run's log.

        Raises
        ------
        LaunchError
            If it fails.
        """
        command = ["run", str(Path(app).resolve()), "here", "--stream"]
        for option, settings in (("--run-config", config), ("--federation-config", federation)):
            if settings:
                text = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
                command += [option, text]
        process, end = self._start("flwr", command, subprocess.PIPE), time.monotonic() + timeout
        last, timer = collections.deque(maxlen=_TAIL), threading.Timer(timeout, stop, [process])
        timer.start()
        try:
            with process.stdout as log:
                for line in _plain(log):
                    last.append(line)
                    if say is not None:
                        say(line)
        finally:
            timer.cancel()
        is_late = time.monotonic() >= end
        status = f"stopped after {timeout:g} s" if is_late else self._status()
        if process.wait() or status != "finished:completed":
            text = "\n".join(last)
            raise LaunchError(f"the run ended as {status}; its log ends with\n{text}")

    def _status(self):
        """Return Flower's name for the state of the last run."""
        listed = subprocess.run(
            [_tool("flwr"), "list", "here", "--format", "json"], env=self._environment(),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        try:
            return json.loads(listed.stdout)["runs"][0]["status"]
        except (ValueError, LookupError, TypeError):
            return f"unknown ({listed.stdout.strip()} {listed.stderr.strip()})"

    def _start(self, tool, arguments, stdout):
        process = subprocess.Popen(
            [_tool(tool), *arguments], env=self._environment(), stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._processes.callback(stop, process)
        return process

    def _environment(self):
        # Flower calls its own programs by name: those of this Python must be found first.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # And apps must find this package, also where it is not installed.
        package = Path(__file__).resolve().parents[2]
        python = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"FLWR_HOME": str(self.home.resolve()), "PATH": path, "PYTHONPATH": python}
        return {**os.environ, **ENVIRONMENT, **own}

    def _wait_for_superlink(self, process, address, seconds=60.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(address, 1):
                return
            time.sleep(0.1)
        lines = _plain((self.home / "flower-superlink.log").read_bytes().splitlines())
        text = "\n".join(list(lines)[-_TAIL:])
        raise LaunchError(f"the SuperLink did not start; its log ends with\n{text}")


def simulate(
    app: str | os.PathLike[str] = APP,
    *,
    clients: int = 3,
    workers: int = 1,
    config: Mapping[str, Any] | None = None,
    timeout: float = threading.TIMEOUT_MAX,
    say: Callable[[str], object] | None = None,
) -> None:
    """Run an app with simulated nodes (Flower's simulation engine, on Ray).

    Parameters
    ----------
    app : path
    clients : int
    workers : int
        Number of clients that train at the same time, each in a process of its own.
    config : dict, optional
        Changes to the app's configuration.
    timeout, say
        As for `Network.run`.
    """
    config = {"clients": clients, **(config or {})}
    federation = {
        "num-supernodes": clients, "client-resources-num-cpus": 1, "init-args-num-cpus": workers,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tinybnn-") as home, Network(home) as network:
        network.run(app, config, federation, timeout=timeout, say=say)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of `Network` and all that it started: by a request, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(15)


def _plain(lines):
    """Decode the lines of a log, and remove their colours."""
    for line in lines:
        yield re.sub(r"\x1b\[[0-9;]*m", "", line.decode("utf-8", "replace")).rstrip("\r\n")


def free_port() -> int:
    """Find a port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _tool(name):
    """Find a program of Flower, beside the running Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise LaunchError(f"there is no {path}: pip install 'tinybnn[flower]'")
    return str(path)
