"""A mistake is named only if it gives the student's answers to all probes."""

import pytest

from tinybnn.course.exercise import Wrong, compare

PROBES = [{"x": 2}, {"x": 3}, {"x": 5}]
MISTAKES = {"doubled": lambda x: 2 * x, "squared": (lambda x: x**2, lambda x: x**2 + 1)}


def message(function, probes=PROBES):
    with pytest.raises(Wrong) as caught:
        compare(function, lambda x: x**3, {"x": 2}, MISTAKES, probes=probes)
    return caught.value.why


def test_a_coincidence_at_the_input_has_no_name():
    assert message(lambda x: 4) == "the value is not as expected"
    assert message(lambda x: 4, probes=()) == "doubled"


def test_the_mistake_that_fits_all_probes_is_named():
    assert message(lambda x: x + x) == "doubled"
    assert message(lambda x: x * x) == "squared"


def test_each_form_of_a_mistake_has_its_name():
    assert message(lambda x: x * x + 1) == "squared"


def test_an_error_on_a_probe_leaves_the_plain_message():
    assert message(lambda x: {2: 4}[x]) == "the value is not as expected"


def test_a_part_of_an_answer_is_called_by_its_name():
    with pytest.raises(Wrong, match="the slope: the value is not as expected"):
        compare(lambda x: (x, 3), lambda x: (x, 2), {"x": 1}, results=("the value", "the slope"))


def test_integers_longer_than_a_word_are_compared():
    compare(lambda x: x << 100, lambda x: x << 100, {"x": 3})
    with pytest.raises(Wrong):
        compare(lambda x: x << 100, lambda x: 1 + (x << 100), {"x": 3})
