"""The runner of all experiments: it resumes interrupted runs, and writes figures and reports.

An experiment is a generator of phases. Each phase writes its *figures*, the numbers that it
measures, to a file (`kept`, or a checkpoint) and adds them to the result. A call that is repeated
after an interruption reads the files that exist and computes only what is missing. After each phase
the runner writes the result as JSON; after the last one, the report and its pictures. The variants
that an experiment compares, such as a binary and a float network, are its *arms*.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinybnn import analysis
from tinybnn.experiments import report
from tinybnn.experiments.settings import Config, as_options
from tinybnn.storage import StorageError, read_json, write_atomic, write_json


@dataclass
class Run:
    """One call of an experiment.

    Attributes
    ----------
    out : Path
        The folder of the run.
    config : Config
    seeds : int
        Seeds 0, 1, ... are run.
    arms : dict
        Name -> arm, for the arms of this call.
    command : str
        The command that reproduces the figures of this call.
    progress : bool
        Show progress bars on stderr.
    say : callable
        Called with each line of text to show, such as `print`.
    options : dict
        Further options of the experiment, which do not affect its figures, and "data", the result
        of `Experiment.begin`.
    """

    out: Path
    config: Any
    seeds: int
    arms: Mapping[str, Any]
    command: str
    progress: bool
    say: Callable[[str], Any]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """The definition of an experiment: what it runs, and how it is reported.

    Attributes
    ----------
    name : str
        As in ``tinybnn reproduce NAME``.
    config : type
        The class of its configurations.
    phases : callable
        ``phases(run, result)`` is a generator: it does the work of a `Run`, adds figures to the
        dict ``result``, and yields a line of text after each phase.
    text : callable
        result -> the report in Markdown.
    pictures : dict
        File name -> (size in inches, draw), for pictures that need nothing but the result:
        ``draw(figure, result)`` draws into a Matplotlib Figure.
    begin : callable
        config -> data, called before anything is written, so that missing data are an error at
        once. The data become ``run.options["data"]``.
    quick : dict
        Settings that differ in a quick run.
    seeds : int
        Default number of seeds.
    arms : dict
        Name -> arm; each can be run separately.
    arms_option : str
        Name of the command-line option that selects some of them.
    options : dict
        Name -> `settings.setting`, for options that do not affect figures.
    figures, report : str
        File names of the result and of the report, without ``.json`` and ``.md``.
    takes : str
        How long it takes, as text for the help.
    description : str
        Text for the help of the command.
    examples : tuple of str
        Commands for the help.
    """

    name: str
    config: type[Config]
    phases: Callable[[Run, dict[str, Any]], Iterator[str]]
    text: Callable[[dict[str, Any]], str]
    pictures: Mapping[str, tuple[tuple[float, float], Callable[..., Any]]]
    begin: Callable[[Any], Any]
    quick: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    arms: Mapping[str, Any] = field(default_factory=dict)
    arms_option: str = "arms"
    options: Mapping[str, Any] = field(default_factory=dict)
    figures: str = "result"
    report: str = "report"
    takes: str = ""
    description: str = ""
    examples: tuple[str, ...] = ()

    def command(self, config: Config, seeds: int, arms: Sequence[str] = ()) -> str:
        """Return the command that reproduces the figures of a configuration."""
        some = [f"--{self.arms_option} {','.join(arms)}"] if 0 < len(arms) < len(self.arms) else []
        first = f"tinybnn reproduce {self.name} --seeds {seeds}"
        return " ".join([first, *some, *as_options(config)])

    def chosen(self, names: Sequence[str] | None) -> dict[str, Any]:
        """Return the named arms (None: all) as name -> arm, in the experiment's order."""
        names = list(self.arms) if names is None else list(names)
        if unknown := [name for name in names if name not in self.arms]:
            known = ", ".join(self.arms)
            raise ValueError(f"{self.name}: unknown arm {unknown[0]!r}, choose from {known}")
        return {name: arm for name, arm in self.arms.items() if name in names}

    def run(
        self,
        out: str | Path,
        config: Any,
        seeds: int | None = None,
        arms: Sequence[str] | None = None,
        note: str = "",
        threads: int | None = None,
        progress: bool = True,
        say: Callable[[str], Any] = print,
        **options: Any,
    ) -> dict[str, Any]:
        """Carry out the experiment, or resume where an earlier call was stopped.

        Parameters
        ----------
        out : path
            Folder of the run, made if it does not exist.
        config : Config
        seeds : int, optional
            Number of seeds: 0, 1, ... are run. A later call may ask for more.
        arms : sequence of str, optional
            Names of the arms to run (default: all). A later call may run others in the same
            folder; so may another process at the same time, if the two have no arm in common.
        note : str
            Text for the report, such as the origin of the images.
        threads : int, optional
            Number of threads of the kernels. It affects measured times, but no other figure.
        progress : bool
            Show progress bars on stderr.
        say : callable
            Called with each line of text to show.
        **options
            Values for `Experiment.options`.

        Returns
        -------
        dict
            The figures, as in the JSON file of the run.

        Raises
        ------
        ValueError
            If the folder holds a run with another configuration, or files that are no run; if an
            arm is unknown; or if the data do not fit the configuration.
        """
        from tinybnn.kernels.machine.threads import num_threads

        out, seeds, chosen = Path(out), seeds or self.seeds, self.chosen(arms)
        options = {name: option.default for name, option in self.options.items()} | options
        options["data"] = self.begin(config)
        open_folder(out, config, say)
        command = self.command(config, seeds, list(chosen))
        result = provenance(self.name, config, command, note=note)
        run = Run(out, config, seeds, chosen, command, progress, say, options)
        with num_threads(threads):
            for line in self.phases(run, result):
                say(line)
                write_json(out / f"{self.figures}.json", result)
        write_json(out / f"{self.figures}.json", result)
        self.write_report(out, result)
        say(f"{out / self.report}.md")
        return result

    def write_report(self, out: Path, result: dict[str, Any]) -> None:
        """Write the report of a result, and the `pictures` drawn from it, into a folder."""
        write_atomic(out / f"{self.report}.md", self.text(result).encode())
        for name, (size, draw) in self.pictures.items():
            report.save_picture(out / name, size, draw, result)


def bar(items: Iterable[Any] | None, unit: str, progress: bool, total: int | None = None) -> Any:
    """Return a progress bar (tqdm) on stderr, over `items` or `total` units."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit=unit, disable=not progress)


def seeded(name: str, seed: int) -> str:
    """Return the file name for a seed: ``name`` for seed 0, else ``name-SEED``."""
    return f"{name}-{seed}" if seed else name


def kept(path: Path, compute: Callable[[], Any]) -> Any:
    """Read figures from a JSON file; if it does not exist, compute and write them first."""
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def open_folder(out: Path, config: Config, say: Callable[[str], Any] = print) -> None:
    """Make the folder of a run, or check that it holds a run with the same configuration.

    A setting that the file of an older run lacks counts as its default. If the run is a quick one,
    or uses only part of the images, `say` is told so before any figure is computed.
    """
    new = dataclasses.asdict(config)
    path = out / "config.json"
    if path.exists():
        _check_settings(path, new, config)
    else:
        if out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
            raise ValueError(f"{out} holds files, but no run; choose a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, new)
    if text := report.notice(new):
        say(report.wrapped(text))


def _check_settings(path, new, config):
    """Raise an error if the settings in a file differ from the new ones."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    old = read_json(path)
    if not isinstance(old, dict):
        raise StorageError(f"{path} is damaged: expected a mapping of settings")
    old = defaults | old
    if different := [name for name in new if old[name] != new[name]]:
        was = ", ".join(f"{name}={json.dumps(old[name])}" for name in different)
        now = ", ".join(f"{name}={json.dumps(new[name])}" for name in different)
        raise ValueError(
            f"{path.parent} is a run with {was}, not {now}; repeat its own settings, "
            "or choose another folder"
        )


def provenance(name: str, config: Config, command: str, **more: Any) -> dict[str, Any]:
    """Return the first entries of a result: what was run, on which machine, and when.

    Parameters
    ----------
    name : str
        The experiment.
    config : Config
    command : str
        The command that reproduces the figures.
    **more
        Further entries about the call.

    Returns
    -------
    dict
        Ready for JSON: ``name``, ``config``, ``command``, the entries of `more`, ``machine`` (see
        `analysis.machine`), ``date``.
    """
    return {
        "name": name,
        "config": dataclasses.asdict(config),
        "command": command,
        **more,
        "machine": analysis.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
