"""The ledger of the papers' claims: figures match the result files, and none is missing."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tinybnn import cli
from tinybnn.experiments import claims

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tinybnn" / "experiments" / "results"
LEDGER = claims.ledger()
ENTRIES = LEDGER["claims"]
FIGURES = [
    pytest.param(figure, id=f"{entry['id']}-{i}")
    for entry in ENTRIES
    for i, figure in enumerate(entry["figures"])
]
NUMBERED = {
    "BD-Net": [
        *(f"Table {i}" for i in range(1, 7)), *(f"Fig. {i}" for i in range(1, 7)),
        *(f"Eq. {i}" for i in range(1, 12)),
    ],
    "HyBNN": [f"Fig. {i}" for i in range(1, 8)],
}  # fmt: skip


def read(name):
    if name == "printed":
        return LEDGER["printed"]
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_that_its_file_does_not_give(figure):
    figures = claims.recompute(figure, read)
    assert figures == {name: figure[name] for name in ("mean", "std", "seeds", "p")}


@pytest.mark.parametrize("paper", NUMBERED)
def test_a_table_a_figure_or_an_equation_that_was_left_out(paper):
    places = {place for e in ENTRIES if e["paper"] == paper for place in e["where"]}
    assert {*NUMBERED[paper]} == {p for p in places if re.match(r"(Table|Fig\.|Eq\.) \d", p)}


ASKED = {
    "bdnet-69.4-60.7", "bdnet-n3", "bdnet-oscillation", "bdnet-two-60.7", "bdnet-26-22",
    "bdnet-large-alpha", "bdnet-comparable-ops", "hybnn-95", "hybnn-50-percent",
    "hybnn-overfitting", "hybnn-training-time", "hybnn-inference-time", "hybnn-power",
    "hybnn-32-times", "hybnn-fig7", "hybnn-federated-first", "hybnn-sequence-greater",
}  # fmt: skip


def test_claims_that_have_no_number_in_the_papers():
    assert {entry["id"] for entry in ENTRIES} >= ASKED


def test_an_entry_that_stands_twice():
    for key in ("id", "claim"):
        names = [(entry["paper"], entry[key]) for entry in ENTRIES]
        assert len(names) == len(set(names))


KEYS = [
    "id", "paper", "where", "claim", "state", "figures", "tests", "sources", "command", "reason",
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e["id"])
def test_a_state_without_what_it_needs(entry):
    assert [*entry] == KEYS
    assert entry["state"] in claims.STATES and entry["paper"] in NUMBERED
    assert entry["where"] and len(entry["claim"]) > 5 and len(entry["reason"]) > 5
    if entry["state"] in ("reproduced", "in part", "refuted"):
        assert entry["figures"] or entry["tests"] or entry["sources"]
    if entry["figures"]:
        assert entry["command"]  # figures without a way to make them are a legend
    if entry["state"] == "reproduced":
        assert entry["figures"] or entry["tests"]
        compared = [f["p"] for f in entry["figures"] if f["p"] is not None]
        assert all(p < 0.05 for p in compared), "what seeds do not tell apart is not reproduced"


def functions_of(path):
    return re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", sorted({name for e in ENTRIES for name in e["tests"]}))
def test_a_test_that_is_not_there(name):
    path, _, function = name.partition("::")
    assert function in functions_of(path)


@pytest.mark.parametrize("command", sorted({e["command"] for e in ENTRIES if e["command"]}))
def test_a_command_that_does_not_parse(command):
    program, *words = shlex.split(command)
    assert program == "tinybnn"
    options = cli._parser().parse_args(words)
    assert callable(options.command)


COMMANDS = {  # a typed command has these; a stored one may differ
    "hybnn-mnist": "reproduce hybnn --dataset mnist --seeds 5",
    "fedhybnn-mnist": "reproduce fedhybnn --dataset mnist --epochs-vae 5",
    "bdnet-ablation": "reproduce bdnet-ablation",
    "bdnet-table2": "reproduce bdnet-table2",
}


@pytest.mark.parametrize("folder", COMMANDS)
def test_a_command_that_makes_other_figures(folder):
    """An entry's command gives the configuration of the result file that the entry names."""
    config = read(f"{folder}/result.json")["config"]
    commands = {
        e["command"]
        for e in ENTRIES
        if any(f["file"] == f"{folder}/result.json" for f in e["figures"])
        and e["command"].startswith(f"tinybnn {COMMANDS[folder]}")
    }
    assert len(commands) == 1
    options = vars(cli._parser().parse_args(shlex.split(commands.pop())[1:]))
    for name, value in config.items():
        if options.get(name) is not None:
            assert options[name] == value, name


# ---------------------------------------------------------------------------- how figures are found

RUNS = {
    "runs": [
        {"name": name, "layers": [{"a": [value, 7]}, {"a": [value + 4, 7]}, {"a": [value + 5, 7]}]}
        for name, value in (("x", 1), ("y", 2), ("x", 5))
    ],
    "other": 2,
}


def recomputed(path, **more):
    return claims.recompute({"file": "f", "path": path, **more}, lambda name: {"f": RUNS}[name])


def test_a_value_for_each_seed():
    figures = recomputed(["runs", {"name": "x"}, "layers", 0, "a", 0])
    assert figures == {"mean": 3, "std": 2.828, "p": None, "seeds": 2}
    assert recomputed(["other"], times=50) == {"mean": 100, "std": None, "p": None, "seeds": None}


@pytest.mark.parametrize(
    ("each", "mean"),
    [("median", 7), ("min", 3), ("max", 8), ("sum", 18), ("count", 3), ("mean", 6)],
)
def test_several_values_of_a_seed(each, mean):
    figures = recomputed(["runs", {"name": "x"}, "layers", "*", "a", 0], each=each)
    assert (figures["mean"], figures["seeds"]) == (mean, 2)


def test_differences_and_ratios():
    x, y = (
        ["runs", {"name": "x"}, "layers", 0, "a", 0],
        ["runs", {"name": "x"}, "layers", 1, "a", 0],
    )
    figures = recomputed(x, minus={"path": y})
    assert figures == {"mean": -4, "std": 0, "p": 0, "seeds": 2}
    assert recomputed(x, over={"path": ["other"]})["mean"] == 1.5
    assert recomputed(x, all="max") == {"mean": 5, "std": None, "p": None, "seeds": None}
    assert recomputed(["runs", {"name": "x"}], all="count")["mean"] == 2
    assert recomputed(["runs", {"name": "z"}], all="count")["mean"] == 0


def test_fractions_have_four_digits_and_whole_numbers_all():
    assert claims._rounded(np.float64(2018880)) == 2018880
    assert claims._rounded(1234.5678) == 1235 and claims._rounded(0.00123456) == 0.001235


# ------------------------------------------------------------------------------------- the command


def test_the_command_counts_states_and_lists_what_is_open(tmp_path, capsys):
    assert cli.main(["reproduce", "claims", "--json", str(tmp_path / "claims.json")]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    report = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert report["claims"] == ENTRIES
    for paper, of_paper in report["counts"].items():
        assert sum(of_paper.values()) == sum(e["paper"] == paper for e in ENTRIES)
        for state, number in of_paper.items():
            assert number == sum((e["paper"], e["state"]) == (paper, state) for e in ENTRIES)
            assert number == 0 or f"\n{state} ({number})\n" in text
    total = sum(e["state"] == "open" for e in ENTRIES)
    assert text.count("\nopen: ") == total
    assert re.search(rf"\nopen +\d+ +\d+ +{total}\n", text)
    words = " ".join(text.split())
    for entry in ENTRIES:
        if entry["state"] == "open":
            assert " ".join(f"{entry['claim']}. {entry['reason']}".split()) in words


def test_json_alone_on_standard_output(capsys):
    assert cli.main(["reproduce", "claims", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert [*json.loads(out)] == ["counts", "claims"] and "open:" in err


LEARNED = re.findall(
    r"^\*\*\d+\. .*?^Ledger: [^\n]*$",
    (ROOT / "tutorials" / "what_we_learned.md").read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)


def test_ten_findings():
    assert [text.partition(".")[0] for text in LEARNED] == [f"**{i}" for i in range(1, 11)]


@pytest.mark.parametrize("text", LEARNED, ids=lambda text: text.partition(".")[0].strip("*"))
def test_a_finding_that_the_ledger_does_not_hold(text):
    """Its command is that of its entries, and each fraction is a number of theirs, rounded."""
    words, ledger = text.split("\nLedger: ")
    entries = [e for e in ENTRIES if f"`{e['id']}`" in ledger]
    assert len(entries) == ledger.count("`") // 2
    (command,) = re.findall(r"^    (tinybnn .*)$", words, re.MULTILINE)
    assert command in [entry["command"] for entry in entries]
    numbers = [abs(f[key]) for e in entries for f in e["figures"] for key in ("mean", "std")
               if f[key] is not None]  # fmt: skip
    told = words.replace(command, "").replace("1.58-bit", "").replace("threshold of\n0.5", "")
    for number in re.findall(r"\d+\.\d+", told):
        digits = len(number.partition(".")[2])
        assert number in [f"{value:.{digits}f}" for value in numbers], number
