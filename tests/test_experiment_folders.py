"""What all experiments share: the folder of a run, its command, its figures as text."""

import json
import re
import statistics
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import analysis, cli, tables
from tinybnn.experiments import report_text, run_folder


@dataclass(frozen=True)
class Config:
    dataset: str = "digits"
    batch_size: int = 8
    two_step: bool = False
    limit: int | None = None


def test_options_are_what_differs_from_the_default():
    assert run_folder.as_options(Config()) == []
    found = run_folder.as_options(Config("mnist", 16, True, 0))
    assert found == ["--dataset mnist", "--batch-size 16", "--two-step", "--limit 0"]


def test_fields_below_their_least_value():
    run_folder.check_least(Config(), batch_size=8)
    with pytest.raises(ValueError, match=r"^Config: batch_size must be >= 9, got 8$"):
        run_folder.check_least(Config(), two_step=False, batch_size=9)


def test_a_result_begins_with_what_was_run_and_where():
    found = run_folder.provenance("x", Config(), "tinybnn x", note="upscaled")
    assert [*found] == ["name", "config", "command", "note", "machine", "date"]
    assert found["config"] == {
        "dataset": "digits", "batch_size": 8, "two_step": False, "limit": None,
    }  # fmt: skip
    assert found["machine"] == analysis.machine() and json.dumps(found)
    text = report_text.when_and_where(found)
    for part in (found["date"], found["machine"]["processor"], found["machine"]["numba"]):
        assert part in text


def test_figures_are_kept(tmp_path):
    path = tmp_path / "figures.json"
    assert run_folder.kept(path, lambda: {"a": (1, None)}) == {"a": [1, None]}
    assert run_folder.kept(path, lambda: pytest.fail("computed again")) == {"a": [1, None]}


def test_the_configuration_of_a_folder(tmp_path):
    out = tmp_path / "new" / "run"
    run_folder.open_folder(out, Config())
    run_folder.open_folder(out, Config())
    with pytest.raises(ValueError, match="is a run with batch_size=8, limit=null, not batch_size="):
        run_folder.open_folder(out, Config(batch_size=9, limit=5))
    with pytest.raises(ValueError, match="holds files, but no run"):
        run_folder.open_folder(tmp_path, Config())
    (out / "config.json").write_text('{"dataset": "digits", "batch_size": 8}')  # an older run's
    run_folder.open_folder(out, Config())
    with pytest.raises(ValueError, match="is a run with two_step=false, not two_step=true"):
        run_folder.open_folder(out, Config(two_step=True))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").touch()  # of a file manager, say
    run_folder.open_folder(tmp_path / "empty", Config())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_mean_and_deviation(values):
    found = report_text.mean_and_std(values)
    assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-12)
    if len(values) == 1:
        assert found["std"] is None
        assert report_text.percent(**found) == f"{values[0] * 100:.2f}"
    else:
        assert found["std"] == pytest.approx(statistics.stdev(values), abs=1e-9)
        mean, std = report_text.percent(**found).split(" ± ")
        assert float(mean) == pytest.approx(100 * found["mean"], abs=0.0051)
        assert float(std) == pytest.approx(100 * found["std"], abs=0.0051)


@given(st.lists(st.text("ab é-", min_size=1, max_size=60), max_size=30))
def test_paragraphs_are_short_lines(words):
    text = " ".join(words)
    lines = report_text.wrapped(text, f"- {text}").splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert " ".join(lines).split() == [*text.split(), "-", *text.split()]


def test_a_table_in_markdown():
    found = tables.markdown(["", "a"], [["x", 1], ["y", 0.5]])
    assert found == "|  | a |\n| --- | --- |\n| x | 1 |\n| y | 0.5 |\n"


# --------------------------------------------------------------------------------- quick runs

# Every experiment that has a quick form, and options that make it as small as may be.
QUICK = {
    "hybnn": "--bits 16 --limit 150 --epochs 1 --epochs-vae 1 --epochs-cnn 1 --epochs-all 1",
    "hybnn-bounds": "--bits 8 --limit 100 --epochs 1 --estimators sign",
    "fedhybnn": "--bits 16 --limit 200 --epochs-vae 1 --rounds 1",
    "fedavg": "--arms 2nn --rounds 1",
    "bdnet-ablation": "--width 0.1 --limit 100 --epochs 1 --arms naive,both",
    "bdnet-table2": "--width 0.1 --limit 100 --epochs 1 --arms reactnet,bdnet-a",
    "hessian": "--width 0.1 --limit 100 --epochs 1 --images 16 --arms naive,both",
    "landscape": "--width 0.1 --limit 100 --epochs 1 --images 16 --arms naive,both",
}
FILES = {"hessian": "hessian", "landscape": "landscape"}  # of figures; those of others: result


def help_of(*words, capsys):
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    return capsys.readouterr().out


def test_every_experiment_with_a_quick_form_is_here(capsys):
    names = re.findall(r"^    ([\w-]+) ", help_of("reproduce", capsys=capsys), re.MULTILINE)
    assert len(names) > len(QUICK)
    assert {n for n in names if "--quick" in help_of("reproduce", n, capsys=capsys)} == {*QUICK}


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
    assert report_text.notice(config) == report_text.notice(config | {"quick": False}) == ""
    text = report_text.top("X", {"config": config, "command": "tinybnn reproduce x"})
    assert text == "# X\n\n    tinybnn reproduce x\n"
    said = []
    run_folder.open_folder(tmp_path / "run", Config(), said.append)
    assert said == []


def test_a_run_of_a_part_of_the_images_says_so(tmp_path):
    said = []
    run_folder.open_folder(tmp_path / "run", Config(limit=1200), said.append)
    assert said == ["Only the first 1,200 images were used."]
    both = report_text.notice({"quick": True, "limit": 600})
    assert both == f"{report_text.QUICK_RUN} Only the first 600 images were used."
