"""Flower's processes on this machine: a simulation, or a SuperLink with SuperNodes.

All that is started here listens on 127.0.0.1 only, sends no telemetry, looks for no updates and
installs nothing; it keeps its files in a folder of its own (`FLWR_HOME`) and ends with the block
that started it.
"""

from __future__ import annotations

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
import time
from pathlib import Path

APP = Path(__file__).parent / "flower_app"
HOST = "127.0.0.1"

# Whatever listens, answers or reports does so on this machine.
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without "clusters" Ray takes 127.0.0.1 for its own address, whatever the name says.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "NO_PROXY": HOST,
    "no_proxy": HOST,
}


class LaunchError(OSError):
    """A process of Flower did not start, or its run failed; the message has the end of its log."""


def new_app(folder):
    """Copy the app of this package, to be changed.

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
    """A SuperLink and what belongs to it, for the length of a ``with`` block.

    Parameters
    ----------
    home : path
        Folder for all files of Flower and the logs of the processes.
    simulation : bool
        With simulated nodes in place of SuperNodes.
    certificates : (ca, certificate, key), optional
        Files in PEM format: the connections are encrypted, and SuperNodes believe no other server.
        Without them they are not, which is right on one machine only.

    Attributes
    ----------
    address : str
        Of the SuperLink, host and port.
    """

    def __init__(self, home, *, simulation=False, certificates=None):
        self.home, self._simulation, self._certificates = Path(home), simulation, certificates
        self.address = f"{HOST}:{_free_port()}"
        self._processes = []

    def __reduce_ex__(self, protocol):
        raise TypeError("Network: running processes cannot be copied; start another Network")

    def __enter__(self):
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._start_superlink()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        while self._processes:
            stop(self._processes.pop())

    def _start_superlink(self):
        command = ["--host", HOST, "--port", self.address.rpartition(":")[2]]
        connection = {"address": self.address}
        if self._certificates is None:
            command.append("--insecure")
            connection["insecure"] = True
        else:
            for option, file in zip(("ca-certfile", "certfile", "keyfile"), self._certificates,
                                    strict=True):  # fmt: skip
                command += [f"--ssl-{option}", str(file)]
            connection["root-certificates"] = str(self._certificates[0])
        if self._simulation:
            command.append("--simulation")
        lines = [f"{name} = {json.dumps(value)}" for name, value in connection.items()]
        config = ["[superlink]", 'default = "here"', "", "[superlink.here]", *lines, ""]
        (self.home / "config.toml").write_text("\n".join(config), encoding="utf-8")
        process = self._start("flower-superlink", command, "superlink")
        self._wait_for_port(process, self.address)

    def supernode(self, number, clients):
        """Start a SuperNode for one client; returns the process."""
        port = _free_port()
        command = [
            "--superlink", self.address, "--host", HOST, "--port", str(port),
            "--node-config", f"partition-id={number} num-partitions={clients}",
        ]  # fmt: skip
        if self._certificates is None:
            command.append("--insecure")
        else:
            command += ["--root-certificates", str(self._certificates[0])]
        return self._start("flower-supernode", command, f"supernode-{number}")

    def run(self, app, config=(), federation=(), *, timeout=None, say=None):
        """Run an app to its end.

        Parameters
        ----------
        app : path
            Folder with a pyproject.toml.
        config : dict
            Changes to the configuration of the app.
        federation : dict
            Of the simulation, such as ``num-supernodes``.
        timeout : float, optional
            Seconds after which it is given up.
        say : callable, optional
            Gets a line of the run's log at a time.

        Raises
        ------
        LaunchError
            If it fails.
        """
        command = [_tool("flwr"), "run", str(Path(app).resolve()), "here", "--stream"]
        for option, settings in (("--run-config", config), ("--federation-config", federation)):
            if settings:
                text = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
                command += [option, text]
        log = self.home / "run.log"
        end = None if timeout is None else time.monotonic() + timeout
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        with open(log, encoding="utf-8", errors="replace") as file:
            while process.poll() is None:
                _pass_on(file, say)
                if end is not None and time.monotonic() > end:
                    raise LaunchError(
                        f"the run has not ended after {timeout:g} s; {log} ends with\n{_tail(log)}"
                    )
                time.sleep(0.1)
            _pass_on(file, say)
        status = self._status()
        if process.returncode or status != "finished:completed":
            raise LaunchError(f"the run ended as {status}; {log} ends with\n{_tail(log)}")

    def _status(self):
        """Of the last run, as Flower names it."""
        listed = subprocess.run(
            [_tool("flwr"), "list", "here", "--format", "json"], env=self._environment(),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        try:
            return json.loads(listed.stdout)["runs"][0]["status"]
        except (ValueError, LookupError, TypeError):
            return f"unknown ({listed.stdout.strip()} {listed.stderr.strip()})"

    def _start(self, tool, arguments, name):
        """Start a process, at the head of a group of its own."""
        log = self.home / f"{name}.log"
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [_tool(tool), *arguments], env=self._environment(), stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def _environment(self):
        # Flower calls its own programs by name: ours must be found first.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # And apps must find this package, also where it is not installed.
        package = Path(__file__).resolve().parents[2]
        python = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"FLWR_HOME": str(self.home.resolve()), "PATH": path, "PYTHONPATH": python}
        return {**os.environ, **ENVIRONMENT, **own}

    def _wait_for_port(self, process, address, seconds=60.0):
        host, _, port = address.rpartition(":")
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return
            time.sleep(0.1)
        log = self.home / "superlink.log"
        raise LaunchError(f"the SuperLink did not start; {log} ends with\n{_tail(log)}")


def simulate(app=APP, *, clients=3, workers=1, config=None, timeout=None, say=None):
    """Run an app with simulated nodes (Flower's simulation engine, on Ray).

    Parameters
    ----------
    app : path
    clients : int
    workers : int
        Clients that train at the same time, each in a process of its own.
    config : dict, optional
        Changes to the app's configuration.
    timeout, say
        As for `Network.run`.
    """
    config = {"clients": clients, **(config or {})}
    federation = {
        "num-supernodes": clients, "client-resources-num-cpus": 1, "init-args-num-cpus": workers,
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="tinybnn-") as home,
        Network(home, simulation=True) as network,
    ):
        network.run(app, config, federation, timeout=timeout, say=say)


def stop(process):
    """End a process of `Network` and all that it started: politely, then by force."""
    for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        if process.poll() is not None and not _group_lives(process):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def _group_lives(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def _pass_on(file, say):
    """Hand on the lines of a log, without colours."""
    for line in file:
        if say is not None:
            say(_COLOUR.sub("", line).rstrip("\n"))


def _tail(log, lines=20):
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _tool(name):
    """Path of a program of Flower, beside the Python that runs."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise LaunchError(f"there is no {path}: pip install 'tinybnn[flower]'")
    return str(path)
