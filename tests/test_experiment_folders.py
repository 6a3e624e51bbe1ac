"""What all experiments share: the folder of a run, its command, its figures as text."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import analysis, cli, tables
from tinybnn.experiments import catalogue, report, runner, settings


@dataclass(frozen=True)
class Config(settings.ImageConfig):
    batch_size: int = settings.setting(8, least=2)
    two_step: bool = False
    share: float = settings.setting(0.0, least=0, most=1)
    lr: float = settings.setting(0.1, above=0)
    base: str = settings.setting("a", choices=("a", "b"))


def test_options_are_what_differs_from_the_default():
    assert settings.as_options(Config()) == []
    words = settings.as_options(Config("mnist", 16, True, limit=5))
    assert words == ["--dataset mnist", "--limit 5", "--batch-size 16", "--two-step"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, r"batch_size must be >= 2, got 1"),
        ({"share": 1.5}, r"share must lie in \[0, 1\], got 1.5"),
        ({"lr": 0.0}, r"lr must be positive, got 0.0"),
        ({"base": "c"}, r"base must be 'a' or 'b', got 'c'"),
        ({"limit": 0}, r"limit must be >= 1, got 0"),
    ],
)
def test_fields_beyond_their_limits(change, message):
    with pytest.raises(ValueError, match=f"^Config: {message}$"):
        Config(**change)


def test_a_result_begins_with_what_was_run_and_where():
    header = runner.provenance("x", Config(), "tinybnn x", note="upscaled")
    assert [*header] == ["name", "config", "command", "note", "machine", "date"]
    assert header["config"] == vars(Config())
    assert header["machine"] == analysis.machine() and json.dumps(header)
    text = report.when_and_where(header)
    for part in (header["date"], header["machine"]["processor"], header["machine"]["numba"]):
        assert part in text


def test_figures_are_kept(tmp_path):
    path = tmp_path / "figures.json"
    assert runner.kept(path, lambda: {"a": (1, None)}) == {"a": [1, None]}
    assert runner.kept(path, lambda: pytest.fail("computed again")) == {"a": [1, None]}


def test_the_configuration_of_a_folder(tmp_path):
    out = tmp_path / "new" / "run"
    runner.open_folder(out, Config())
    runner.open_folder(out, Config())
    with pytest.raises(ValueError, match="is a run with limit=null, batch_size=8, not limit="):
        runner.open_folder(out, Config(batch_size=9, limit=5))
    with pytest.raises(ValueError, match="holds files, but no run"):
        runner.open_folder(tmp_path, Config())
    (out / "config.json").write_text('{"dataset": "digits", "batch_size": 8}')  # an older run's
    runner.open_folder(out, Config())
    with pytest.raises(ValueError, match="is a run with two_step=false, not two_step=true"):
        runner.open_folder(out, Config(two_step=True))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").touch()  # of a file manager, say
    runner.open_folder(tmp_path / "empty", Config())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_mean_and_deviation(values):
    numbers = report.mean_and_std(values)
    assert numbers["mean"] == pytest.approx(statistics.fmean(values), abs=1e-12)
    if len(values) == 1:
        assert numbers["std"] is None
        assert report.percent(**numbers) == f"{values[0] * 100:.2f}"
    else:
        assert numbers["std"] == pytest.approx(statistics.stdev(values), abs=1e-9)
        mean, std = report.percent(**numbers).split(" ± ")
        assert float(mean) == pytest.approx(100 * numbers["mean"], abs=0.0051)
        assert float(std) == pytest.approx(100 * numbers["std"], abs=0.0051)


pairs = st.lists(st.tuples(*2 * [st.integers(0, 1000)]), min_size=2, max_size=30)


@given(pairs)
def test_the_paired_test_is_scipys(values):
    stats = pytest.importorskip("scipy.stats")
    first, second = (np.array(column) / 1000 for column in zip(*values, strict=True))
    comparison = report.paired(first, second)
    assert comparison["better"] == int((first > second).sum())
    assert comparison["seeds"] == len(values)
    assert comparison["mean"] == (first - second).mean()
    if np.ptp(first - second) > 1e-9:  # without any spread SciPy warns
        assert comparison["p"] == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-9)


def test_pairs_without_a_spread():
    assert report.paired([0.5, 0.75], [0.25, 0.5])["p"] == 0
    assert report.paired([0.5, 0.75], [0.5, 0.75])["p"] == 1
    assert report.paired([0.5], [0.25])["p"] is None


@pytest.mark.parametrize(
    ("p", "text"), [(0.04999, "p = 0.05"), (0.0012, "p = 0.0012"), (0.0009, "p < 0.001")]
)
def test_a_probability_in_words(p, text):
    assert report.probability(p) == text


@given(st.lists(st.text("ab é-", min_size=1, max_size=60), max_size=30))
def test_paragraphs_are_short_lines(words):
    text = " ".join(words)
    lines = report.wrapped(text, f"- {text}").splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert " ".join(lines).split() == [*text.split(), "-", *text.split()]


def test_a_table_in_markdown():
    table = tables.markdown(["", "a"], [["x", 1], ["y", 0.5]])
    assert table == "|  | a |\n| --- | --- |\n| x | 1 |\n| y | 0.5 |\n"


# --------------------------------------------------------------------------- reports, written anew

RESULTS = Path(__file__).parents[1] / "tinybnn" / "experiments" / "results"
STORED = sorted(p.parent.name for p in RESULTS.glob("*/result.json"))


@pytest.mark.parametrize("name", STORED)
def test_a_stored_report_that_its_figures_do_not_give(name):
    path = RESULTS / name / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    text = (RESULTS / name / "report.md").read_text(encoding="utf-8")
    assert catalogue.experiment_of(result, path).text(result) == text


def test_a_report_is_written_again(tmp_path, capsys):
    stored = RESULTS / "hybnn-bounds-mnist-200"
    (tmp_path / "result.json").write_bytes((stored / "result.json").read_bytes())
    assert cli.main(["reproduce", "report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.md'}\n"
    assert (tmp_path / "report.md").read_bytes() == (stored / "report.md").read_bytes()
    assert (tmp_path / "bounds.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "result.json"),
        ("[1]", "is no result of an experiment: expected one of mnist-cnn, "),
        ('{"name": "train"}', "is no result of an experiment"),
        ('{"name": "fedavg"}', "lacks 'config'; was the run stopped before its end?"),
    ],
)
def test_a_folder_without_a_complete_result(tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert cli.main(["reproduce", "report", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


# --------------------------------------------------------------------------------- quick runs

# Every experiment that has a quick form, and options that make it as small as may be.
QUICK = {
    "mnist-cnn": "--seeds 2",
    "hybnn": "--bits 16 --limit 150 --epochs 1 --epochs-vae 1 --epochs-cnn 1 --epochs-all 1",
    "hybnn-bounds": "--bits 8 --limit 100 --epochs 1 --estimators sign",
    "fedhybnn": "--bits 16 --limit 200 --epochs-vae 1 --rounds 1",
    "fedavg": "--arms 2nn --rounds 1",
    "bdnet-ablation": "--width 0.1 --limit 100 --epochs 1 --arms naive,both",
    "bdnet-training": "--width 0.1 --limit 100 --epochs 2 --arms one-step,two-step-distilled",
    "bdnet-fronts": "--width 0.1 --limit 100 --epochs 1 --arms adabin,bdnet-a",
    "bdnet-table2": "--width 0.1 --limit 100 --epochs 1 --arms reactnet,bdnet-a",
    "hessian": "--width 0.1 --limit 100 --epochs 1 --images 16 --arms naive,both",
    "landscape": "--width 0.1 --limit 100 --epochs 1 --images 16 --arms naive,both",
}
FILES = {name: name for name in ("mnist-cnn", "hessian", "landscape")}  # others: result, report


def help_of(*words, capsys):
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    return capsys.readouterr().out


def test_every_experiment_with_a_quick_form_is_here(capsys):
    alike = {"mnist-mlp", "mnist-mlp-1024", "cifar10-vgg-small"}  # but for the network
    assert {*catalogue.EXPERIMENTS} == {*QUICK} | alike
    for name in catalogue.EXPERIMENTS:
        text = help_of("reproduce", name, capsys=capsys)
        assert not [o for o in ("--quick", "--json", "--out", "--seeds") if o not in text], name


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_run_whose_figures_are_taken_for_results(tmp_path, capsys, name):
    """It says what it is in its first line, and so does its report, before any figure."""
    out = tmp_path / "run"
    line = ["reproduce", name, "--quick", "--quiet", "--out", str(out), *QUICK[name].split()]
    assert cli.main(line) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("A quick run: its figures mean nothing beyond showing that the code")
    figures, report = f"{FILES.get(name, 'result')}.json", f"{FILES.get(name, 'report')}.md"
    title, _, first, *_ = (out / report).read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert first.startswith("**A quick run: its figures mean nothing beyond showing that the code")
    result = json.loads((out / figures).read_text(encoding="utf-8"))
    assert result["config"]["quick"] is True
    assert result["command"].startswith(f"tinybnn reproduce {name} ")
    assert " --quick" in result["command"]  # whoever repeats it gets the same configuration
    assert cli.main([*result["command"].split()[1:], "--quiet", "--out", str(out)]) == 0


def test_a_run_with_the_experiments_own_settings_says_nothing(tmp_path):
    config = {"dataset": "mnist", "limit": None}
    assert report.notice(config) == report.notice(config | {"quick": False}) == ""
    result = runner.provenance("x", Config(), "tinybnn reproduce x")
    assert report.page("X", result, "A.").startswith("# X\n\n    tinybnn reproduce x\n\n")
    said = []
    runner.open_folder(tmp_path / "run", Config(), said.append)
    assert said == []


def test_a_run_of_a_part_of_the_images_says_so(tmp_path):
    said = []
    runner.open_folder(tmp_path / "run", Config(limit=1200), said.append)
    assert said == ["Only the first 1,200 images were used."]
    both = report.notice({"quick": True, "limit": 600})
    assert both == f"{report.QUICK_RUN} Only the first 600 images were used."
