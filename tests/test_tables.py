"""Tables: no line is too long, no text becomes markup, and notebooks display objects."""

import copy
import pickle
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import analysis, datasets, deploy, models, nn, tables, training
from tinybnn.analysis import operations
from tinybnn.deploy.runtime import Profile

# ---------------------------------------------------------------------------------------- text

words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), max_size=60)


@given(st.data(), st.integers(1, 6), st.integers(30, 100))
def test_lines_that_are_too_long(data, columns, width):
    """Cells are wrapped whatever their text, and no character is lost."""
    cells = st.lists(words, min_size=columns, max_size=columns)
    header, *rows = data.draw(st.lists(cells, min_size=1, max_size=5))
    text = tables.text(header, rows, width=width)
    assert max(map(len, text.split("\n"))) <= width
    given = [cell for row in (header, *rows) for cell in row]
    assert sorted("".join(text.split())) == sorted("".join(given))


def test_a_table_of_text():
    rows = [("conv1", "16×8×8", "1,024"), ("a layer with a very long name", "10", "8")]
    assert tables.text(("layer", "output", "bytes"), rows, "<<>", 30).split("\n") == [
        "layer            output  bytes",
        "conv1            16×8×8  1,024",
        "a layer with a   10          8",
        "very long name",
    ]


def test_text_over_several_lines_keeps_to_its_cell():
    text = tables.text(("a", "b"), [("two\nlines", "1")])
    assert text.split("\n") == ["a          b", "two lines  1"]


# ---------------------------------------------------------------------------------------- HTML


class Page(HTMLParser):
    """Reads HTML, checks that its tags are balanced, and keeps its text and rows."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.rows, self.texts = [], set(), [], []
        self.feed(html)
        self.close()
        assert not self.open, f"{self.open} not closed"

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1].append(data)

    @property
    def text(self):
        return " ".join(self.texts)


TAGS = {"table", "caption", "thead", "tbody", "tr", "td", "th"}
EVIL = '<script>alert("1")</script>&amp;'


def page(shown):
    """An object's display in a notebook."""
    table = Page(shown._repr_html_())
    assert table.tags <= TAGS
    return table


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.text(max_size=20))
def test_any_text_stays_text(cells, title):
    table = Page(tables.html(cells, [cells], title=title))
    assert table.tags <= TAGS
    assert ["".join(row) for row in table.rows] == ["".join(cells)] * 2


def test_markup_in_a_cell_a_header_and_a_title():
    html = tables.html([EVIL], [[EVIL]], title=EVIL)
    assert "<script" not in html and '"1"' not in html
    assert [text.strip() for text in Page(html).texts if text.strip()] == [EVIL] * 3


def test_the_middle_of_a_long_table_is_left_out():
    table = Page(tables.html(["n"], [[i] for i in range(1000)]))
    assert len(table.rows) == 1 + 60 + 1
    assert ["29"] in table.rows and ["970"] in table.rows and ["500"] not in table.rows
    assert ["… 940 more …"] in table.rows
    assert len(Page(tables.html(["n"], [[i] for i in range(60)])).rows) == 61


Evil = type(EVIL, (nn.Linear,), {"extra_repr": lambda self: EVIL})


def network(layer=nn.Linear):
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.BinaryLinear(64, 32, input_quantizer=None, rng=rng), nn.BatchNorm1d(32), nn.ReLU(),
        layer(32, 10, rng=rng),
    )  # fmt: skip


def history():
    rows = [{"epoch": 1, "loss": 0.123456789, "accuracy": 0.5, EVIL: EVIL}]
    return training.History([*rows, {"epoch": 2, "loss": 0.1, "val_accuracy": 0.75}])


def test_a_model():
    table = page(network(Evil))
    assert table.text.count(EVIL) == 2  # its class and its settings
    assert ["3", EVIL, EVIL, "330"] in table.rows
    assert ["0", "BinaryLinear", network()[0].extra_repr(), "2,048"] in table.rows
    assert "Sequential: 2,442 parameters" in table.text
    assert ["2", "ReLU"] in [row[:2] for row in table.rows]


def test_a_layer_alone_and_a_model_that_shares_layers():
    table = page(nn.Linear(3, 2))
    assert "Linear: 8 parameters" in table.text and table.rows[1][0] == "Linear"
    shared = nn.Linear(2, 2)
    table = page(nn.Sequential(shared, nn.ReLU(), shared))
    assert "Sequential: 6 parameters" in table.text and len(table.rows) == 3


def test_a_summary():
    shown = analysis.summary(network().eval(), (64,))
    table = page(shown)
    assert table.rows[1][:4] == ["0 (BinaryLinear)", "32", "2,048", "1"]
    assert table.rows[-1][0] == "total" and f"{shown.total('bops'):,}" in table.rows[-1]
    assert f"OPs = BOPs / 64 + FLOPs = {shown.ops:,.0f}" in table.text
    assert "no packed form" not in table.text
    shown.rows[0]["name"], shown.not_packed = EVIL, EVIL
    table = page(shown)
    assert f"{EVIL} (BinaryLinear)" in table.text and f"no packed form: {EVIL}" in table.text


def test_a_history():
    shown = history()
    table = page(shown)
    assert table.rows[0] == ["epoch", "loss", "accuracy", EVIL, "val_accuracy"]
    assert table.rows[1] == ["1", "0.1235", "0.5", EVIL]  # nothing where there is no value
    assert table.rows[2] == ["2", "0.1", "0.75"]
    assert "History: 2 epochs" in table.text
    assert page(training.History()).rows[0] == []
    for copied in (pickle.loads(pickle.dumps(shown)), copy.deepcopy(shown)):
        assert copied == shown and vars(copied) == {"rows": shown.rows}


def test_a_data_set():
    images = np.zeros((5, 1, 2, 2), np.uint8)
    labels = np.array([0, 2, 2, 0, 2])
    table = page(datasets.Dataset(images, labels, ("cat", EVIL, "dog"), "pets <b>"))
    assert table.rows[1:] == [["0", "cat", "2"], ["1", EVIL, "0"], ["2", "dog", "3"]]
    assert "Dataset(pets <b>: 5 images 1×2×2 uint8 up to 255, 3 classes)" in table.text


def test_a_packed_model():
    packed = deploy.compile(models.mlp(64, (32,), 10).eval(), (64,))
    table = page(packed)
    assert len(table.rows) == 1 + len(packed.steps)
    assert f"PackedModel: input 64, {packed.nbytes:,} bytes" in table.text
    for step, row, size in zip(packed.steps, table.rows[1:], packed.step_bytes(), strict=True):
        assert row[1] == step.operation and row[-2:] == [step.name, f"{size:,}"]
    packed.steps[0].name = EVIL
    assert EVIL in page(packed).text


def test_a_profile():
    packed = deploy.compile(models.mlp(64, (32,), 10).eval(), (64,))
    shown = packed.profile(np.zeros((2, 64), np.float32), 1)
    assert isinstance(shown, list) and shown[0]["seconds"] > 0
    table = page(shown)
    assert len(table.rows) == 1 + len(shown) + 1
    assert [row["layer"] for row in shown] == [row[0] for row in table.rows[1:-1]]
    assert str(shown) == repr(shown) == shown.table()
    lines = str(shown).split("\n")
    assert lines[0].split()[:3] == ["layer", "operations", "ms"] and lines[-1].startswith("total")
    total = sum(row["seconds"] for row in shown) * 1e3
    assert float(lines[-1].split()[1]) == pytest.approx(total, abs=1e-3)
    assert pickle.loads(pickle.dumps(shown)) == shown == list(shown)
    shown[0]["layer"], shown[0]["operations"] = EVIL, [EVIL]
    assert page(shown).text.count(EVIL) == 2


def test_a_profile_of_long_names():
    row = {
        "layer": " + ".join(f"features.{i}.block.convolution" for i in range(9)),
        "operations": ["xnor_conv2d"] * 9, "seconds": 1234.5, "share": 1.0, "products": 10**15,
        "rate": 1e15, "peak_share": 12.34,
    }  # fmt: skip
    text = str(Profile([row]))
    assert max(map(len, text.split("\n"))) <= 100
    assert text.count("xnor_conv2d") == 9 and "1,000,000" in text


def test_times_of_operations_with_long_names():
    rows = [
        {"operation": name, "shape": [64, 1024, 128, 128], "calls": 10**6, "forward_s": 1e3,
         "backward_s": 1e3, "share": 0.5}
        for name in ("Straight" * 12, "Mul")
    ]  # fmt: skip
    for width in (100, 96):
        assert max(map(len, operations.table(rows, width).split("\n"))) <= width


def test_notebooks_do_not_wait_for_matplotlib():
    code = "import sys, tinybnn as tb; tb.nn.Linear(2, 2)._repr_html_(); "
    code += "sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
