"""Detect exchanged black and white from the training images' statistics that a model stores."""

import numpy as np
import pytest

from tinybnn import datasets
from tinybnn.datasets import brightness, check_brightness, looks_inverted


def pencil(images, maximum, paper, ink):
    """Light drawings on a dark ground, as a photograph of ink on paper shows them."""
    return (paper + (ink - paper) * images.astype(np.float32) / maximum).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "alarms", "dim"), [("digits", 0, 0.5), ("mnist", 0, 0.5), ("fashion-mnist", 0, 0.5)]
)
def test_inverses_are_told_from_training_and_test_images(name, alarms, dim):
    try:
        train, test = datasets.load(name)
    except FileNotFoundError:
        pytest.skip(f"{name} is not on this machine")
    known = brightness(train.images, train.maximum)
    for part in (train, test):
        assert looks_inverted(part.images, part.maximum, known).sum() == alarms
        inverse = part.images.max() - part.images
        assert looks_inverted(inverse, part.maximum, known).all()
        good_light = pencil(part.images, part.maximum, paper=0.8, ink=0.2)
        assert looks_inverted(good_light, 1, known).all()
        bad_light = pencil(part.images, part.maximum, paper=0.4, ink=0.1)
        assert looks_inverted(bad_light, 1, known).mean() > dim


def test_dark_on_light_is_known_as_well():
    train, test = datasets.load("digits")
    known = brightness(16 - train.images, 16)
    assert known["border"] > 0.5
    assert not looks_inverted(16 - test.images, 16, known).any()
    assert looks_inverted(test.images, 16, known).all()


def test_images_of_any_brightness_tell_nothing():
    """Photographs: a warning would be wrong as often as right."""
    rng = np.random.default_rng(0)
    level = rng.integers(0, 200, (500, 1, 1, 1))
    images = (level + rng.integers(0, 56, (500, 3, 8, 8))).astype(np.uint8)
    assert brightness(images, 255) is None
    assert brightness(images[:0], 255) is None


def test_integers_and_floats_give_the_same():
    train, _ = datasets.load("digits")
    known = brightness(train.images, 16)
    assert known == brightness((train.images / np.float32(16)).astype(np.float32), 1)
    inside = np.ones((8, 8), bool)
    inside[1:-1, 1:-1] = False
    assert known["border"] == pytest.approx(train.images[:, 0, inside].mean() / 16, abs=1e-6)
    assert known["mean"] == pytest.approx(train.images.mean() / 16, abs=1e-6)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_images_that_are_nearly_all_border(side):
    images = np.zeros((4, 1, side, side), np.uint8)
    known = brightness(images, 255)
    assert known == {"mean": 0.0, "border": 0.0}
    assert looks_inverted(255 - images, 255, known).tolist() == [True] * 4
    assert looks_inverted(images[:0], 255, known).shape == (0,)


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"mean": 0.5}, {"mean": 0.5, "border": 2}, {"mean": 0.5, "border": float("nan")},
        {"mean": 0.5, "border": True}, {"mean": "0", "border": 0}, [0.5, 0.5], "dark",
        {"mean": 0.5, "border": 0.1, "more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_training_images_give_is_refused(wrong):
    with pytest.raises(ValueError, match="brightness must be numbers from 0 to 1"):
        check_brightness(wrong, "brightness")
    check_brightness(None, "brightness")
    check_brightness({"mean": 0, "border": 1.0}, "brightness")
