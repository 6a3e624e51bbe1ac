"""The runner of all experiments: phases that leave files, resuming, seeds, bars, figures as JSON.

An experiment is a generator of phases. Each phase writes its figures to a file (`Run.kept`, or a
checkpoint) and into the result; a call that is repeated after an interruption reads what has its
file, and computes the rest. After each phase the runner writes the result; after the last one, the
report and its pictures.
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
        Name -> arm, those that take part.
    command : str
        The command that gives the figures of this call.
    progress : bool
        Show progress bars on stderr.
    say : callable
        Takes a line of text at a time.
    options : dict
        Further options of the experiment, which do not decide figures.
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
    """What is run, and how it is reported.

    Attributes
    ----------
    name : str
    config : type
        The class of its configurations.
    phases : callable
        ``phases(run, result)`` is a generator: it does the work of a `Run`, adds figures to the
        dict ``result``, and yields a line of text after each phase.
    text : callable
        result -> the report in Markdown.
    pictures : dict
        File name -> (size in inches, draw); ``draw(figure, result)`` draws what needs no more than
        the figures.
    begin : callable
        Called with a configuration before anything is written: it loads the data, or raises an
        error. Its result is ``run.options["data"]``.
    quick : dict
        The settings of a quick run.
    seeds : int
        Number of seeds by default.
    arms : dict
        Name -> arm; each can be run alone.
    arms_option : str
        The option of the command line that names some of them.
    options : dict
        Name -> `settings.setting` of options that decide no figure.
    figures, report : str
        Names of the files, without their endings.
    takes : str
        How long it takes, as text.
    description : str
        For the help of the command, in lines.
    examples : tuple of str
        Commands.
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
        """Return the command that gives the figures of a configuration."""
        some = [f"--{self.arms_option} {','.join(arms)}"] if 0 < len(arms) < len(self.arms) else []
        first = f"tinybnn reproduce {self.name} --seeds {seeds}"
        return " ".join([first, *some, *as_options(config)])

    def chosen(self, names: Sequence[str] | None) -> dict[str, Any]:
        """Return the arms that are named, or all: name -> arm, in the experiment's order."""
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
            Run seeds 0, 1, ...; more may be added by a later call.
        arms : sequence of str, optional
            Run only some arms (default: all). Another call may add others, also another process at
            the same time if the two share no arm.
        note : str
            Printed in the report, such as the origin of the images.
        threads : int, optional
            Number of threads of the kernels. No figure but the times depends on it.
        progress : bool
            Show progress bars on stderr.
        say : callable
            Takes a line of text at a time.
        **options
            Further options of the experiment.

        Returns
        -------
        dict
            The figures, as in the JSON file of the run.

        Raises
        ------
        ValueError
            If the folder holds a run with another configuration, or something else; if an arm is
            unknown or the data do not fit the configuration.
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
        """Write the report of a result into a folder, and the pictures that its figures give."""
        write_atomic(out / f"{self.report}.md", self.text(result).encode())
        for name, (size, draw) in self.pictures.items():
            report.save_picture(out / name, size, draw, result)


def bar(items: Iterable[Any] | None, unit: str, progress: bool, total: int | None = None) -> Any:
    """Return a progress bar (tqdm) on stderr, over `items` or `total` units."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit=unit, disable=not progress)


def seeded(name: str, seed: int) -> str:
    """Return the name of a file of one seed; the first seed has no number."""
    return f"{name}-{seed}" if seed else name


def kept(path: Path, compute: Callable[[], Any]) -> Any:
    """Read figures from a JSON file; if it does not exist, compute and write them first."""
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def open_folder(out: Path, config: Config, say: Callable[[str], Any] = print) -> None:
    """Make the folder of a run, or check that it holds a run with the same configuration.

    A setting that an older run does not know had its default then. A quick run, or one on a part
    of the images, is announced here, before any of its figures.
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
    """Raise an error if a file holds other settings than the new ones."""
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
    """Return what a result begins with: what was run, on which machine and when.

    Parameters
    ----------
    name : str
        The experiment.
    config : Config
    command : str
        The command that gives these figures.
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
