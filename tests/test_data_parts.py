"""Parts of data sets, several as one, batches of a function of one's own, and resampled images."""

import numpy as np
import pytest

from tinybnn import manual_seed
from tinybnn.datasets import (
    ConcatDataset,
    Cutout,
    DataLoader,
    RandomRotation,
    Resize,
    Subset,
    TensorDataset,
    from_arrays,
    random_split,
)
from tinybnn.datasets.resampling import rotated
from tinybnn.testing import assert_identical


def images(count=10):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 2, 4, 5), dtype=np.uint8)
    return from_arrays(pixels, np.arange(count) % 3)


# -------------------------------------------------------------------------------------------- parts


def test_a_part_gives_the_batches_of_the_whole():
    data = images()
    part = Subset(data, [7, 2, -1])
    (x, y), *_ = DataLoader(part, 3)
    (expected, labels), *_ = DataLoader(data[np.array([7, 2, 9])], 3)
    assert_identical(x, expected)  # scaled to [-1, 1] as the whole is
    assert_identical(y, labels)
    assert x.transpose(0, 2, 3, 1).flags.c_contiguous


def test_data_sets_one_after_the_other():
    both = ConcatDataset([images(4), images(3)])
    assert len(both) == 7 and both.cumulative_sizes == [4, 7]
    assert_identical(both[5][0], images(3).images[1])
    assert_identical(both[-7][0], both[0][0])
    for index in (7, -8):
        with pytest.raises(IndexError, match=f"sample {index} of 7"):
            both[index]
    x, y = next(iter(DataLoader(both, 7)))
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() <= 1
    assert_identical(y, np.array([0, 1, 2, 0, 0, 1, 2]))


def test_data_sets_with_different_values_of_white():
    other = from_arrays(np.zeros((2, 2, 4, 5), np.float32), [0, 1], maximum=1)
    with pytest.raises(ValueError, match=r"different values of white: \[1, 255\]"):
        DataLoader(ConcatDataset([images(), other]))


def test_tables_have_no_value_of_white():
    table = TensorDataset(np.arange(6.0).reshape(3, 2), [0, 1, 2])
    both = ConcatDataset([table, Subset(table, [1])])
    x, y = next(iter(DataLoader(both, 4)))
    assert_identical(x, np.float32([[0, 1], [2, 3], [4, 5], [2, 3]]))
    assert_identical(y, np.array([0, 1, 2, 1]))


def test_random_parts_share_no_sample():
    data = list(zip(range(11), range(11), strict=True))
    first, second, third = random_split(data, [5, 4, 2], generator=3)
    assert [len(p) for p in (first, second, third)] == [5, 4, 2]
    found = [p[i][0] for p in (first, second, third) for i in range(len(p))]
    assert sorted(found) == list(range(11)) and found != sorted(found)
    again = random_split(data, [5, 4, 2], generator=np.random.default_rng(3))
    assert_identical(again[0].indices, first.indices)
    manual_seed(5)
    one = random_split(data, [6, 5])[0].indices
    manual_seed(5)
    assert_identical(random_split(data, [6, 5])[0].indices, one)


def test_shares_are_rounded_as_in_pytorch():
    assert [len(p) for p in random_split(range(10), [0.34, 0.33, 0.33])] == [4, 3, 3]
    assert [len(p) for p in random_split(range(11), [0.5, 0.5])] == [6, 5]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: random_split(range(5), [3, 3]), "add up to the 5 samples"),
        (lambda: random_split(range(5), [6, -1]), "add up to the 5 samples"),
        (lambda: random_split(range(5), [0.5, 0.4]), "shares must be >= 0 and add up to 1"),
        (lambda: random_split(range(5), [1.5, -0.5]), "shares must be >= 0 and add up to 1"),
        (lambda: Subset(range(5), [0, 5]), "must lie in the 5 samples"),
        (lambda: Subset(range(5), [0.5]), "a row of integers"),
        (lambda: ConcatDataset([]), "at least one data set"),
        (lambda: RandomRotation(-5), "degrees must be >= 0"),
        (lambda: RandomRotation((5, 2)), "a rising pair"),
        (lambda: Resize(0), "size must be >= 1"),
        (lambda: Cutout(2.5), "size must be an integer"),
        (lambda: Cutout(2)(np.zeros((3, 4, 4)), None), "Cutout: images must be an array"),
    ],
)
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()


# ------------------------------------------------------------------------------------------ batches


def test_a_function_makes_the_batches():
    words = ["a", "bcd", "ef", "g", "hi"]
    loader = DataLoader(words, 2, collate_fn=lambda samples: [len(s) for s in samples])
    assert list(loader) == [[1, 3], [2, 1], [2]]
    shuffled = DataLoader(words, 2, shuffle=True, drop_last=True, rng=0, collate_fn=tuple)
    batches = list(shuffled)
    assert len(batches) == 2 and {w for b in batches for w in b} < set(words)
    first = next(iter(DataLoader(images(), 3, collate_fn=list)))
    assert first[2][1] == 2 and first[2][0].dtype == np.uint8


def test_a_collate_function_takes_the_place_of_a_transform():
    for settings in ({"collate_fn": list, "transform": abs}, {"collate_fn": 3}):
        with pytest.raises(
            TypeError, match="collate_fn must be callable, and replaces a transform"
        ):
            DataLoader(images(), **settings)


# ------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("size", [4, 5])
def test_quarter_turns_are_exact(turns, size):
    x = np.random.default_rng(0).integers(0, 256, (3, 2, size, size), dtype=np.uint8)
    pixels = x.transpose(0, 2, 3, 1)
    assert_identical(rotated(pixels, [90.0 * turns] * 3), np.rot90(pixels, turns, axes=(1, 2)))


def test_each_image_turns_by_an_angle_of_its_own():
    x = np.zeros((200, 1, 21, 21), np.float32)
    x[:, :, 10, 10:] = 1.0  # a hand that points to the right
    turned = RandomRotation((30, 60), fill=0.5)(x, np.random.default_rng(0))
    assert turned.shape == x.shape and turned.dtype == x.dtype
    assert np.all(turned[:, 0, 10, 10] == 1.0) and set(np.unique(turned)) == {0.0, 0.5, 1.0}
    rows, columns = np.nonzero((turned[:, 0] == 1.0).any(0))
    assert rows.max() == 10 and columns.min() == 10  # counter-clockwise: up and to the right
    assert len(np.unique(turned, axis=0)) > 5
    assert np.all(x[:, :, 10, 10:] == 1.0) and x.sum() == 200 * 11


def test_the_shorter_side_of_resized_images():
    x = np.full((2, 3, 20, 30), 7, np.uint8)
    assert Resize(10)(x, None).shape == (2, 3, 10, 15)
    assert Resize(10)(x.transpose(0, 1, 3, 2), None).shape == (2, 3, 15, 10)
    y = Resize((3, 50))(x, None)
    assert y.shape == (2, 3, 3, 50) and np.all(y == 7)


def test_squares_are_covered():
    x = np.ones((300, 2, 9, 7), np.float32)
    y = Cutout(3, fill=-1.0)(x, np.random.default_rng(0))
    assert np.all(x == 1.0) and set(np.unique(y)) == {-1.0, 1.0}
    covered = y == -1.0
    assert_identical(covered[:, 0], covered[:, 1])
    counts = covered[:, 0].sum((1, 2))
    assert set(counts) == {4, 6, 9}  # those at corners and edges are cut off
    assert covered[:, 0].any(0).all()
    heights = covered[:, 0].any(2).sum(1)
    assert set(heights) == {2, 3}
