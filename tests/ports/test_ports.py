"""Scripts written for PyTorch run with tinybnn's import lines: equal losses, exact bits."""

import json

import harness
import numpy as np
import pytest

from tinybnn import deploy, nn

RECORDED = json.loads((harness.FOLDER / "losses.json").read_text(encoding="utf-8"))


def check(name, kind, images, labels):
    """Train with tinybnn, compare with PyTorch's recorded results, then pack the network."""
    losses, seen, model = harness.run(harness.script(name, "tinybnn"), images, labels)
    recorded = RECORDED[f"{name}, {kind}"]
    np.testing.assert_allclose(losses, recorded["losses"], rtol=0, atol=1e-9)
    for ours, theirs in zip(seen, recorded["seen"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    packed = deploy.compile(model.float().eval(), images.shape[1:])
    assert deploy.verify(model, packed, images[:20]) > 0
    assert any("xnor" in step.operation for step in packed.steps)


@pytest.mark.parametrize("name", harness.SHAPES)
def test_losses_on_synthetic_images(name):
    check(name, "synthetic", *harness.synthetic(name))


@pytest.mark.parametrize("name", harness.SHAPES)
def test_losses_on_real_images(name):
    try:
        images, labels = harness.real(name)
    except FileNotFoundError:
        pytest.skip(f"{harness.DATA[name]} is not on this machine")
    check(name, "real", images, labels)


@pytest.mark.parametrize("name", harness.SHAPES)
def test_only_the_imports_differ(name):
    source = (harness.FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert 60 <= len(source) <= 120
    ported = harness.with_imports_of("tinybnn", "\n".join(source)).splitlines()
    changed = [line for line, other in zip(source, ported, strict=True) if line != other]
    assert changed and all("import" in line for line in changed)
    assert not any("torch" in line for line in ported if line.startswith("from"))


def test_the_accuracy_of_the_perceptron():
    script = harness.script("binarynet_mlp", "tinybnn")
    images, labels = harness.synthetic("binarynet_mlp")
    _, _, model = harness.run(script, images, labels)
    assert script.accuracy(model, images, labels) > 0.9


def test_a_network_says_which_of_its_weights_are_signs():
    """A custom Function keeps real weights; a layer of tinybnn knows its signs."""
    model = nn.Sequential(nn.BinaryLinear(4, 3))
    assert set(np.unique(model.binary_weights()["0.weight"])) <= {-1.0, 1.0}
