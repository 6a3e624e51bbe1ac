"""The map of a packed file: each byte is drawn once, in the right category."""

import itertools
import json
import zipfile

import numpy as np
import pytest
from test_plots import render, trained_cnn

from tinybnn import deploy, models, plots, storage

KINDS = {  # by their colours
    plots.MINUS: "signs", plots.PLUS: "thresholds", plots.PALETTE[2]: "floats",
    plots.PALETTE[4]: "header", plots.PALETTE[5]: "integers",
}  # fmt: skip


def saved(tmp_path, model=None, shape=(1, 8, 8)):
    packed = deploy.compile(trained_cnn()[0] if model is None else model, shape)
    path = tmp_path / "model.npz"
    packed.save(path)
    return packed, path


def drawn_bytes(ax):
    """The colour of each byte of the rows; "" for none, two colours are an error."""
    from matplotlib.colors import to_hex

    width, rows = round(ax.get_xlim()[1]), round(ax.get_ylim()[0])
    colors = np.full((rows, width), "", object)
    for patch in ax.patches:
        (x, y), w, h = patch.get_xy(), patch.get_width(), patch.get_height()
        place = np.s_[round(y) : round(y + h), round(x) : round(x + w)]
        assert (colors[place] == "").all()
        colors[place] = to_hex(patch.get_facecolor()).upper()
    return colors.ravel()


@pytest.mark.parametrize("network", ["cnn", "mobilenet"])
def test_a_byte_that_is_drawn_as_something_else(tmp_path, network):
    """Each byte has the colour of its content in the arrays read from the file."""
    if network == "cnn":
        packed, path = saved(tmp_path)
    else:
        model = models.mobilenet_v1(0.1, 32, 4, "bdnet-a", rng=np.random.default_rng(0))
        packed, path = saved(tmp_path, model, (3, 32, 32))
    ax = plots.packed_file(path)
    render(ax.figure)
    content, colors = path.read_bytes(), drawn_bytes(ax)
    assert (colors[: len(content)] != "").all() and (colors[len(content) :] == "").all()
    kinds = np.array([KINDS.get(color, "frame") for color in colors[: len(content)]])
    with zipfile.ZipFile(path) as file:
        zipped = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
    arrays, metadata = storage.load(path, kind="packed-model", version=3)
    signs = {key for step in metadata["steps"] for name, key in step["arrays"].items()
             if name in step["bits"]}  # fmt: skip
    expected = {"signs": 0, "floats": 0}
    for name, array in arrays.items():
        kind = "signs" if name in signs else "floats" if array.dtype.kind == "f" else None
        start = zipped[name].header_offset + 30 + len(zipped[name].filename)
        start += 10 + int.from_bytes(content[start + 8 : start + 10], "little")  # the .npy's header
        here = kinds[start : start + array.nbytes]
        assert content[start : start + array.nbytes] == array.tobytes()
        assert len({*here}) == 1 and (kind is None or here[0] == kind), name
        if kind:
            expected[kind] += array.nbytes
    assert {kind: np.count_nonzero(kinds == kind) for kind in expected} == expected
    header = bytes(np.frombuffer(content, np.uint8)[kinds == "header"])
    assert json.loads(header)["kind"] == "packed-model"
    assert sum(expected.values()) <= packed.nbytes < len(content)


def test_the_legend_counts_the_bytes(tmp_path):
    _, path = saved(tmp_path)
    ax = plots.packed_file(path)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    counts = [int(text.split(": ")[-1].split(" bytes")[0].replace(",", "")) for text in texts]
    assert sum(counts) == path.stat().st_size and len(texts) == 7
    assert f"{path.stat().st_size:,} bytes" in ax.get_title()


def test_names_that_lie_outside_of_their_arrays(tmp_path):
    _, path = saved(tmp_path)
    ax = plots.packed_file(path)
    ax.figure.draw_without_rendering()
    names = {text.get_text() for text in ax.texts}
    assert {"header", "directory", "6: weight"} <= names
    boxes = [text.get_window_extent() for text in ax.texts]
    inside = [patch.get_window_extent() for patch in ax.patches]
    for i, box in enumerate(boxes):
        assert any(p.x0 <= box.x0 and box.x1 <= p.x1 and p.y0 <= box.y0 and box.y1 <= p.y1
                   for p in inside)  # fmt: skip
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_file_of_another_kind(tmp_path):
    storage.save(tmp_path / "other.npz", {"a": np.ones(3)}, kind="codes", version=1)
    with pytest.raises(storage.StorageError, match="of kind 'codes', expected 'packed-model'"):
        plots.packed_file(tmp_path / "other.npz")
    (tmp_path / "text.txt").write_text("no zip")
    with pytest.raises(storage.StorageError, match=r"text\.txt: not a tinybnn file"):
        plots.packed_file(tmp_path / "text.txt")
    with pytest.raises(FileNotFoundError):
        plots.packed_file(tmp_path / "absent.npz")
    with pytest.raises(storage.StorageError, match="not a regular file"):
        plots.packed_file(tmp_path)


def test_a_damaged_file(tmp_path):
    _, path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(storage.StorageError, match="damaged"):
        plots.packed_file(path)


def test_the_layout_of_a_file_has_no_gaps(tmp_path):
    arrays = {"a": np.arange(5.0), "b": np.zeros((0, 3), np.int8), "c": np.ones((2, 2), bool)}
    arrays["c"] = arrays["c"].astype(np.uint8)
    path = tmp_path / "file.npz"
    storage.save(path, arrays, kind="test", version=1)
    members = storage.layout(path)
    assert [member.name for member in members] == ["__header__", "a", "b", "c"]
    assert members[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(members))
    content = path.read_bytes()
    for member in members[1:]:
        body = np.frombuffer(content[member.body : member.stop], member.dtype)
        np.testing.assert_array_equal(body.reshape(member.shape), arrays[member.name])
    (tmp_path / "cut.npz").write_bytes(content[: members[1].stop - 3])
    with pytest.raises(storage.StorageError, match=r"cut\.npz: cut off"):
        storage.layout(tmp_path / "cut.npz")
