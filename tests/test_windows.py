"""The geometry of sliding windows, against a walk over all windows and taps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.machine.windows import pair, windows, with_border

few = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def geometries(draw):
    kernel, stride, dilation = draw(few), draw(few), draw(few)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    size = tuple(draw(st.integers(n, n + 4)) for n in least)
    return size, kernel, stride, padding, dilation


@given(geometries())
def test_every_tap_of_every_window(geometry):
    size, kernel, stride, padding, dilation = geometry
    of = windows("conv2d", *geometry)
    pairs = of.size, of.kernel_size, of.stride, of.padding, of.dilation
    assert pairs == geometry and of.taps == kernel[0] * kernel[1]
    image = np.arange(1, size[0] * size[1] * 2 + 1).reshape(1, *size, 2)
    padded = with_border(image, padding)
    assert padded.shape[1:3] == of.padded_size
    starts, taps = of.places(2)
    seen = {(ky, kx): view for ky, kx, view in of.views(padded)}
    assert [*seen] == [*np.ndindex(*kernel)]
    for (ky, kx), view in seen.items():
        assert view.shape == (1, *of.out_size, 2)
        for oy, ox in np.ndindex(*of.out_size):
            y, x = (
                o * s + t * d - p
                for o, s, t, d, p in zip((oy, ox), stride, (ky, kx), dilation, padding, strict=True)
            )
            inside = 0 <= y < size[0] and 0 <= x < size[1]
            expected = image[0, y, x] if inside else [0, 0]
            assert np.array_equal(view[0, oy, ox], expected)
            assert (of.positions(0)[oy, ky], of.positions(1)[ox, kx]) == (y, x)
            assert (of.inside(0)[oy, ky] and of.inside(1)[ox, kx]) == inside
            at = starts[oy * of.out_width + ox] + taps[ky * kernel[1] + kx]
            assert np.array_equal(padded.reshape(-1)[at : at + 2], expected)
    # No further window fits.
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    for out, s, span, whole in zip(of.out_size, stride, spans, of.padded_size, strict=True):
        assert (out - 1) * s + span <= whole < out * s + span


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((4, 4), (5, 1)), "conv2d: the kernel covers 5 x 1 pixels, the padded image has 4 x 4"),
        (((4, 4), (3, 3), (1, 1), (0, 0), (2, 2)), "covers 5 x 5 pixels"),
        (((4, 4), (0, 3)), "the kernel covers"),
        (((4, 4), (3, 3), (0, 1)), r"stride must be two integers >= 1, got \(0, 1\)"),
        (((4, 4), (3, 3), (1, 1), (-1, 0)), r"padding must be two integers >= 0, got \(-1, 0\)"),
        (((4, 4), (3, 3), (1, 1), (0, 0), (1, 0)), "dilation must be two integers >= 1"),
        (((4,), (3, 3)), "size must be two integers"),
    ],
)
def test_windows_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        windows("conv2d", *sizes)


def test_a_pair_of_numpy_integers_becomes_plain():
    result = pair("conv2d", "stride", np.array([2, 3]), 1)
    assert result == (2, 3) and all(type(n) is int for n in result)
