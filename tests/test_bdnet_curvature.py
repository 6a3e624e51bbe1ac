"""BD-Net's figures of curvature: spectra of trained networks, condition numbers of a layer."""

import json
import math

import numpy as np
import pytest

from tinybnn import analysis, cli
from tinybnn import functional as F
from tinybnn.autograd import Tensor, grad
from tinybnn.experiments.bdnet import conditioning, curvature, landscape
from tinybnn.experiments.bdnet import report as bdnet_report
from tinybnn.experiments.bdnet.training import load_for, trained, untrained

SMALL = curvature.Config(
    dataset="digits", width=0.1, epochs=1, batch_size=16, limit=64, images=32, steps=12
)


def run(folder, config=SMALL, **options):
    said = []
    options = {"progress": False, "say": said.append, "threads": 1} | options
    return curvature.run(folder, config, **options), said


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hessian") / "run"
    result, _ = run(folder, seeds=1, arms=["naive", "both"])
    return folder, result


# ---------------------------------------------------------------------------------------- spectra


def test_a_run_leaves_figures_a_table_and_a_picture(made):
    folder, result = made
    assert json.loads((folder / "hessian.json").read_text()) == json.loads(json.dumps(result))
    assert [(row["name"], row["stage"]) for row in result["rows"]] == [
        ("naive", "start"), ("naive", "end"), ("both", "start"), ("both", "end"),
    ]  # fmt: skip
    text = (folder / "hessian.md").read_text()
    assert "| naive |" in text and "both: BD-Net-A against naive" in text
    assert (folder / "hessian.png").read_bytes()[:4] == b"\x89PNG"
    assert not [line for line in text.splitlines() if line[:1] not in "| " and len(line) > 100]
    assert not list(folder.glob("*/lanczos-*")), "checkpoints of what is done"


def test_figures_are_those_of_the_hessian(made):
    """λ1 with its vector: the operator stretches some vector by as much, and none by more."""
    folder, result = made
    train = load_for(SMALL)[0]
    arm = curvature.ARMS["both"]
    for stage, model in (
        ("start", untrained(arm, SMALL, 0, train)),
        ("end", trained(folder / "both-0", arm, SMALL, 0, train)),
    ):
        operator = curvature.operator_of(model, train, SMALL)
        [row] = [r for r in result["rows"] if (r["name"], r["stage"]) == ("both", stage)]
        assert row["parameters"] == operator.size
        assert row["top"] == sorted(row["top"], reverse=True) and len(row["top"]) == 10
        assert row["lowest"] == min(row["nodes"]) and math.isclose(sum(row["weights"]), 1)
        v = np.random.default_rng(0).standard_normal(operator.size).astype(np.float32)
        v /= np.linalg.norm(v)
        value = float(v @ (operator @ v))
        slack = max(row["residuals"])
        assert row["lowest"] - slack <= value <= row["top"][0] + slack


def test_what_is_done_is_not_computed_again(made, monkeypatch):
    folder, result = made
    monkeypatch.setattr(curvature, "spectrum_of", lambda *arguments: 1 / 0)
    again, _ = run(folder, seeds=1, arms=["naive", "both"])
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(result))


def test_pairs_are_compared_seed_by_seed():
    def row(name, seed, first):
        return {"name": name, "seed": seed, "top": [first, 1.0], "mean_size": 0.5}

    rows = [row("naive", 0, 8.0), row("both", 0, 4.0), row("naive", 1, 6.0), row("both", 1, 9.0)]
    result = {
        "arms": {"naive": "naive", "both": "both"},
        "rows": [r | {"stage": stage} for r in rows for stage in curvature.STAGES],
    }
    found = curvature.summary(result)
    assert found["networks"]["naive"]["end"]["first"]["mean"] == 7.0
    pairs = [p for p in found["pairs"] if (p["where"], p["measure"]) == ("start", "condition")]
    assert [p["by_seed"] for p in pairs] == [[0.5, 1.5]]
    text = bdnet_report.pairs(
        result | {"summary": found}, "ratio", lambda x: f"×{np.exp(np.log(x).mean()):.2f}", 1
    )
    assert text.count("| ×0.87 | 1 of 2 |") == 4  # sqrt(0.5 * 1.5)


def test_a_folder_of_another_configuration_is_refused(made):
    folder, _ = made
    with pytest.raises(ValueError, match="steps=12, not steps=13"):
        run(folder, curvature.Config(**{**vars(SMALL), "steps": 13}))


def test_unknown_networks_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="unknown arm 'resnet', choose from float, reactnet"):
        run(tmp_path / "run", arms=["resnet"])
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "hessian", "--arms", "navie", "--quick"])
    assert "did you mean 'naive'" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- landscapes

FLAT = landscape.Config(
    dataset="digits", width=0.1, epochs=1, batch_size=16, limit=64, images=32, points=5, grid=3
)


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape") / "run"
    options = {"progress": False, "say": lambda text: None, "threads": 1}
    return folder, landscape.run(folder, FLAT, 2, ["float", "both"], **options)


def test_a_run_leaves_landscapes(surfaces):
    folder, result = surfaces
    assert json.loads((folder / "landscape.json").read_text()) == json.loads(json.dumps(result))
    assert [(row["name"], row["seed"], row["surface"]) for row in result["rows"]] == [
        (name, seed, surface)
        for seed in range(2)
        for name, surface in (("float", "binary"), ("both", "binary"), ("both", "surrogate"))
    ]
    for row in result["rows"]:
        path = folder / f"{row['name']}-{row['seed']}" / "line.npz"
        found = analysis.load_landscape(path)
        assert found.losses[row["surface"]].tolist() == row["losses"]
        assert found.coordinates[0].tolist() == result["alphas"] == [-1, -0.5, 0, 0.5, 1]
    assert (folder / "both-0" / "plane.npz").exists()
    assert not (folder / "both-1" / "plane.npz").exists()
    text = (folder / "landscape.md").read_text()
    for name in ("lines.png", "planes.png"):
        assert f"({name})" in text and (folder / name).read_bytes()[:4] == b"\x89PNG"
    assert not [line for line in text.splitlines() if line[:1] not in "| " and len(line) > 100]


def test_the_middle_of_the_line_is_the_network(surfaces):
    folder, result = surfaces
    train = load_for(FLAT)[0]
    model = trained(folder / "both-1", curvature.ARMS["both"], FLAT, 1, train)
    batches = [(train.images[:32], train.labels[:32])]
    batches = [((x / train.maximum * 2 - 1).astype(np.float32), y) for x, y in batches]
    [row] = [r for r in result["rows"] if (r["name"], r["seed"], r["surface"])
             == ("both", 1, "binary")]  # fmt: skip
    assert math.isclose(row["loss"], analysis.mean_loss(model, batches), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("losses", "ruggedness", "rise"),
    [
        ([4.0, 1, 0, 1, 4], 1.0, 2.0),
        ([4.0, 3, 2, 1, 0], 1.0, 0.0),  # downhill all the way is no roughness
        ([4.0, 0, 2, 0, 4], 12 / 8, 0.0),
        ([1.0, 1, 1, 1, 1], 1.0, 0.0),
    ],
)
def test_measures_of_a_line(losses, ruggedness, rise):
    assert landscape.measures(losses) == {
        "loss": losses[2], "ruggedness": ruggedness, "rise": rise,
    }  # fmt: skip


def test_the_network_is_a_point_of_the_line():
    with pytest.raises(ValueError, match="points must be odd, got 4"):
        landscape.Config(points=4)


def test_a_run_of_the_other_experiment_serves_as_well(made, monkeypatch):
    """Its networks are not trained again."""
    folder, _ = made
    from tinybnn.experiments.bdnet import training as bdnet_training

    monkeypatch.setattr(bdnet_training, "fit", lambda *arguments: 1 / 0)
    config = landscape.Config(**{k: v for k, v in vars(SMALL).items() if k != "steps"})
    monkeypatch.setattr(landscape, "surfaces_of", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError) as error:
        landscape.run(folder, config, 1, ["both"], threads=1, progress=False, say=lambda text: None)
    assert error.traceback[-1].name == "<lambda>" and "surfaces_of" in str(error.traceback[-2])


# -------------------------------------------------------------------------------- condition numbers


def test_the_jacobian_is_the_convolution():
    rng = np.random.default_rng(0)
    weight, image = rng.choice([-1.0, 1.0], (3, 3)), rng.standard_normal((5, 5))
    expected = np.zeros((5, 5))
    for i, j, u, v in np.ndindex(5, 5, 3, 3):
        y, x = i + u - 1, j + v - 1
        if 0 <= y < 5 and 0 <= x < 5:
            expected[i, j] += weight[u, v] * image[y, x]
    found = conditioning.jacobian(weight, 5) @ image.ravel()
    np.testing.assert_allclose(found, expected.ravel(), rtol=1e-12)


def test_the_hessian_has_the_squared_condition_number():
    """Eq. 5: of ½|α D x + x|², differentiated twice by the engine."""
    alpha, size = 0.7, 3
    weight = conditioning.all_filters()[77]
    x = Tensor(np.zeros((1, 1, size, size)), requires_grad=True)
    y = F.conv2d(x, Tensor(weight[None, None]), padding=1) * alpha + x
    [slope] = grad((y * y).sum() * 0.5, [x], create_graph=True)
    rows = []
    for i in range(size * size):
        one = np.zeros(size * size)
        one[i] = 1
        [row] = grad(slope, [x], Tensor(one.reshape(x.shape)), retain_graph=True)
        rows.append(row.data.ravel())
    j = alpha * conditioning.jacobian(weight, size) + np.eye(size * size)
    np.testing.assert_allclose(np.array(rows), j.T @ j, atol=1e-12)
    first, last = conditioning.stretch(j)
    largest, least = conditioning.stretch(np.array(rows))
    assert math.isclose(largest / least, (first / last) ** 2, rel_tol=1e-6)


def test_all_filters():
    found = conditioning.all_filters()
    assert found.shape == (512, 3, 3) and len(np.unique(found, axis=0)) == 512
    assert set(np.unique(found)) == {-1, 1}


def test_equation_6_holds_for_a_symmetric_convolution_alone():
    blur = np.array([[0.0, 0, 0], [0.25, 0.5, 0.25], [0, 0, 0]])  # no negative eigenvalue
    signs = np.array([[1.0, 1, 1], [1, 1, -1], [-1, 1, -1]])
    for weight, holds in ((blur, True), (signs, False)):
        found = conditioning.run([3.0], 6, weight[None], say=lambda text: None)["rows"][0]
        assert math.isclose(found["with"][1], found["eq6"][1], rel_tol=1e-6) is holds


def test_the_command(tmp_path, capsys, monkeypatch):
    filters = conditioning.all_filters()[::64]
    monkeypatch.setattr(conditioning, "all_filters", lambda: filters)
    paths = tmp_path / "c.png", tmp_path / "c.json"
    line = ["reproduce", "condition", "--plot", str(paths[0]), "--json", str(paths[1])]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "Condition numbers, medians of 8 filters" in out
    assert max(map(len, out.split("\n"))) <= 100
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    result = json.loads(paths[1].read_text())
    assert [row["alpha"] for row in result["rows"]] == [*conditioning.ALPHAS]
    small = result["rows"][0]
    assert math.isclose(small["with"][1], small["eq6"][1], rel_tol=1e-3)  # α near 0: J is near I
    assert small["eq9"][1] > 50 * small["with"][1]  # where λn << α is not so, Eq. 9 is far off
