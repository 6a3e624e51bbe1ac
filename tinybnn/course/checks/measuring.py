"""Chapter 13: tests over seeds, ratios of times, counted operations and their limits."""

from __future__ import annotations

import itertools
import math
import statistics
from types import ModuleType

import numpy as np

from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all

_TOLERANCE = 1e-9

# Accuracies in percent, five seeds: the notebook's.
_CODES = np.array([99.6186, 99.6316, 99.6212, 99.5802, 99.5874])
_PIXELS = np.array([99.7791, 99.6569, 99.7209, 99.6791, 99.6886])


# -------------------------------------------------------------------------------------- paired_t


def _paired_t(first, second):
    differences = first - second
    return np.mean(differences) / (np.std(differences, ddof=1) / math.sqrt(len(differences)))


def _over(error):
    """The mean difference over what `error` makes of the differences."""
    return lambda first, second: np.mean(first - second) / error(first - second)


def _unpaired(first, second):
    variances = np.var(first, ddof=1) + np.var(second, ddof=1)
    return np.mean(first - second) / math.sqrt(variances / len(first))


_PAIRED_T_MISTAKES = {
    "this is the t of two unrelated groups, made of the spread of each network; the seeds belong "
    "together, so take the differences seed by seed first": _unpaired,
    "values are sorted, which tears the pairs apart: element i of both belongs to seed i":
        (lambda first, second: _paired_t(np.sort(first), np.sort(second)),
         lambda first, second: _paired_t(np.sort(first)[::-1], np.sort(second)[::-1])),
    "the standard deviation divides by S here; the mean is taken from the same numbers and is "
    "nearer to them than the true one, so divide by S - 1: ddof=1":
        _over(lambda d: np.std(d) / math.sqrt(len(d))),
    "this divides by the spread of single differences; the mean of S of them varies less, by the "
    "square root of S": (_over(lambda d: np.std(d, ddof=1)), _over(np.std)),
    "the standard deviation is divided by S; the mean of S numbers varies less by the square root "
    "of S only": (_over(lambda d: np.std(d, ddof=1) / len(d)), _over(lambda d: np.std(d) / len(d))),
    "S - 1 is for the standard deviation, with ddof=1; the square root is that of S":
        _over(lambda d: np.std(d, ddof=1) / math.sqrt(len(d) - 1)),
    "this divides by a variance, a square; take its root":
        (_over(lambda d: np.var(d, ddof=1) / len(d)), _over(lambda d: np.var(d) / len(d)),
         _over(lambda d: np.var(d, ddof=1))),
    "the sign is lost: t is negative where first is smaller in the mean":
        lambda first, second: abs(_paired_t(first, second)),
    "the sign is reversed: the differences are first - second":
        lambda first, second: _paired_t(second, first),
    "this is the mean difference; t says how many of its standard errors it is away from 0":
        lambda first, second: np.mean(first - second),
    "this is the standard error; the mean difference has to be divided by it":
        lambda first, second: np.mean(first - second) / _paired_t(first, second),
}  # fmt: skip


def paired_t_values(measuring: ModuleType) -> None:
    """paired_t divides the mean difference by its standard error, for 2 to 8 seeds."""
    from hypothesis import assume
    from hypothesis import strategies as st

    probes = [
        {"first": _CODES, "second": _PIXELS},
        {"first": np.array([90.0, 92.0, 94.0, 97.0]), "second": np.array([93.0, 91.0, 88.0, 90.0])},
    ]

    def check(first, second):
        inputs = {"first": first, "second": second}
        compare(measuring.paired_t, _paired_t, inputs, _PAIRED_T_MISTAKES, _TOLERANCE, probes)

    def drawn(pairs):
        first, second = np.array(pairs, float).T / 8
        assume(np.ptp(first - second) > 0)
        check(first, second)

    for probe in probes:
        check(**probe)
    eighths = st.integers(700, 800)
    for_all(drawn, pairs=st.lists(st.tuples(eighths, eighths), min_size=2, max_size=8))


# ----------------------------------------------------------------------------------- sign_flip_p


def _choices(differences):
    """All choices of signs, and the sum of the differences for each; the first is their own."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    return signs, signs @ differences


def _slack(differences):
    return 1e-9 * np.abs(differences).sum()


def _share(at_least, observed=1):
    """The share of choices for which ``at_least(sums, own sum, slack)``, `observed` added."""

    def share(differences):
        sums = _choices(differences)[1]
        count = np.count_nonzero(at_least(sums, sums[0], _slack(differences)))
        return (count + observed - 1) / (len(sums) + observed - 1)

    return share


_sign_flip_p = _share(lambda sums, own, slack: np.abs(sums) >= abs(own) - slack)


def _sign_test(differences):
    """Of the signs alone: at least as many of one kind."""
    signs = np.sign(differences).sum()
    return np.mean(np.abs(_choices(differences)[0].sum(axis=1)) >= abs(signs))


def _without_slack(differences, total):
    choices = itertools.product((1, -1), repeat=len(differences))
    flipped = (np.array(signs) * differences for signs in choices)
    return np.mean([abs(total(values)) >= abs(total(differences)) for values in flipped])


_STRICT = (
    "sums that are exactly as far from 0 must count, too (at least as far), and the differences "
    "as they are make one of them: p is never 0"
)
_ROUNDED = (
    "sums that are equal but for rounding count as smaller here, so that p depends on the order of "
    "addition; compare with what the docstring allows, 1e-9 times the sum of all magnitudes"
)
_SIGN_FLIP_MISTAKES = {
    "only sums on the side of the observed one are counted; a difference as large in favour of the "
    "other network would be as surprising, so compare magnitudes":
        (_share(lambda sums, own, slack: sums >= own - slack),
         _share(lambda sums, own, slack: sums <= own + slack),
         _share(lambda sums, own, slack: np.sign(own) * sums >= abs(own) - slack)),
    _STRICT: (_share(lambda sums, own, slack: np.abs(sums) > abs(own) + slack),
             lambda d: _share(lambda s, own, slack: np.abs(s) > abs(own) + slack)(d) + 0.5**len(d)),
    "the choice that leaves all signs as they are is left out; it is one of the 2**S":
        _share(lambda sums, own, slack: np.abs(sums) >= abs(own) - slack, observed=0),
    "one more is added to the count and to the number of choices, as for flips drawn at random; "
    "here all 2**S are tried, the observed one among them":
        _share(lambda sums, own, slack: np.abs(sums) >= abs(own) - slack, observed=2),
    "only the signs are looked at, not how large the differences are: sum the differences, with "
    "their signs chosen": _sign_test,
    "this is the share of choices that are less far from 0, 1 - p":
        _share(lambda sums, own, slack: np.abs(sums) < abs(own) - slack),
    "this is the number of choices, not their share; divide by 2**S":
        lambda d: _sign_flip_p(d) * 2 ** len(d),
    "the two-sided share is doubled; the magnitudes already count both sides":
        lambda d: 2 * _sign_flip_p(d),
    _ROUNDED: (lambda d: _without_slack(d, np.sum), lambda d: _without_slack(d, np.mean),
              lambda d: _without_slack(d, lambda v: sum(map(float, v)))),
}  # fmt: skip


def sign_flip_values(measuring: ModuleType) -> None:
    """sign_flip_p tries all choices of signs and counts both sides, ties included."""
    from hypothesis import strategies as st

    probes = [
        {"differences": np.array(values)}
        for values in ([3.0, 2.0, -1.0], [1.0, 2.0, 4.0, 8.0, -3.0], [-2.0, -2.0, 1.0])
    ]

    def check(differences):
        inputs = {"differences": differences}
        function, mistakes = measuring.sign_flip_p, _SIGN_FLIP_MISTAKES
        compare(function, _sign_flip_p, inputs, mistakes, _TOLERANCE, probes)

    for probe in probes:
        check(**probe)
    check(np.round(_CODES - _PIXELS, 4))
    values = st.lists(st.integers(-20, 20), min_size=1, max_size=7)
    for_all(lambda values: check(np.array(values, float) / 4), values=values)


def sign_flip_ties(measuring: ModuleType) -> None:
    """sums that differ by rounding alone are equal."""
    for values in ([0.1, 0.2, 0.3, -0.1], [0.1, 0.7, 0.2, -0.1, -0.2], [-0.3, 0.1, -0.3, 0.3]):
        inputs = {"differences": np.array(values)}
        got, expected = call(measuring.sign_flip_p, inputs), _sign_flip_p(*inputs.values())
        if abs(got - expected) > _TOLERANCE:
            raise Wrong(_ROUNDED, inputs, got, expected)


def sign_flip_is_exact(measuring: ModuleType) -> None:
    """each choice is tried once, up to 12 differences, and none is drawn at random."""
    rng = np.random.default_rng(13)
    for count in (11, 12):
        inputs = {"differences": rng.integers(-40, 60, count) / 4}
        got, expected = call(measuring.sign_flip_p, inputs), _sign_flip_p(*inputs.values())
        if abs(got - expected) > _TOLERANCE:
            again = call(measuring.sign_flip_p, inputs)
            drawn = again != got or "random" in _names(measuring.sign_flip_p)
            why = (
                "the signs are drawn at random, so p is an estimate; 2**12 = 4096 choices are few "
                "enough to try all"
                if drawn
                else f"of {count} differences not all 2**{count} choices of signs are tried once"
            )
            raise Wrong(why, inputs, got, expected)


def _names(function):
    return getattr(getattr(function, "__code__", None), "co_names", ())


# ----------------------------------------------------------------------------------------- ratio


class _Machine:
    """Two functions on a machine whose speed changes, and its clock.

    Calls are numbered from 0. Call i takes its function's seconds times ``slow[i // 2]``, the last
    factor for all later calls, and ``late[i]`` seconds more; the first call of each function takes
    `compiling` seconds more.
    """

    def __init__(self, first, second, slow=(1.0,), late=None, compiling=0.0):
        self.seconds = {"first": first, "second": second}
        self.slow, self.late, self.compiling = slow, late or {}, compiling
        self.now, self.calls, self.reads = 1000.0, [], 0

    def _run(self, name):
        i = len(self.calls)
        self.now += self.seconds[name] * self.slow[min(i // 2, len(self.slow) - 1)]
        self.now += self.late.get(i, 0.0) + self.compiling * (name not in self.calls)
        self.calls.append(name)

    def first(self):
        self._run("first")

    def second(self):
        self._run("second")

    def clock(self):
        self.reads += 1
        return self.now


def _timed(machine, name):
    begin = machine.clock()
    machine._run(name)
    return machine.clock() - begin


def _measured(machine, rounds, warm_up=True):
    """Seconds of both functions in each round: (rounds, 2)."""
    if warm_up:
        machine.first()
        machine.second()
    names = ("first", "second")
    return np.array([[_timed(machine, name) for name in names] for _ in range(rounds)])


def _ratio(machine, rounds):
    seconds = _measured(machine, rounds)
    return statistics.median(seconds[:, 1] / seconds[:, 0])


def _of(summary, warm_up=True):
    return lambda machine, rounds: summary(_measured(machine, rounds, warm_up))


def _one_after_the_other(summary, warm_up=True):
    def ratio(machine, rounds):
        columns = []
        for name in ("first", "second"):
            if warm_up:
                machine._run(name)
            columns.append([_timed(machine, name) for _ in range(rounds)])
        return summary(np.array(columns).T)

    return ratio


def _median_of_ratios(seconds):
    return statistics.median(seconds[:, 1] / seconds[:, 0])


def _ratio_of(middle):
    return lambda seconds: middle(seconds[:, 1]) / middle(seconds[:, 0])


_SUMMARIES = (_median_of_ratios, *map(_ratio_of, (np.median, np.mean, min)))
_RATIO_MISTAKES = {
    "the first calls are timed; in them functions are compiled, memory is fetched, caches are "
    "empty. Call both once before the rounds, without the clock":
        tuple(_of(summary, warm_up=False) for summary in _SUMMARIES),
    "all calls of first are timed, then all of second; the machine changed its speed in between. "
    "Time both in each round, in turn":
        tuple(_one_after_the_other(*one) for one in itertools.product(_SUMMARIES, (True, False))),
    "the mean of the rounds is taken: one round in which something came between moves it; take the "
    "median": (_of(lambda seconds: np.mean(seconds[:, 1] / seconds[:, 0])),
               _of(_ratio_of(np.mean))),
    "the fastest calls are compared, which may be of different rounds; divide within each round, "
    "then take the median": _of(_ratio_of(min)),
    "the median of each function's seconds is taken before the division; divide within each round, "
    "where the machine was the same for both, then take the median of the ratios":
        _of(_ratio_of(np.median)),
    "the smallest of the rounds' ratios is taken; in it second was lucky, or first unlucky. Take "
    "the median": _of(lambda seconds: min(seconds[:, 1] / seconds[:, 0])),
    "the largest of the rounds' ratios is taken; in it first was lucky, or second unlucky. Take "
    "the median": _of(lambda seconds: max(seconds[:, 1] / seconds[:, 0])),
    "the ratio is upside down: it is the seconds of second divided by those of first":
        (lambda machine, rounds: 1 / _ratio(machine, rounds),
         _of(lambda seconds: statistics.median(seconds[:, 0] / seconds[:, 1]))),
    "this is the difference of the seconds; divide them":
        _of(lambda seconds: statistics.median(seconds[:, 1] - seconds[:, 0])),
    "the second measurement begins with the first one's start, so first's seconds count in both; "
    "read the clock again between the calls":
        _of(lambda seconds: statistics.median(seconds.sum(axis=1) / seconds[:, 0])),
}  # fmt: skip

_MACHINES = (
    {"first": 2.0, "second": 6.0, "slow": [1.0], "late": {}, "compiling": 30.0, "rounds": 1},
    {"first": 2.0, "second": 3.0, "slow": [1.0, 1.0, 1.0, 4.0, 4.0, 4.0], "late": {},
     "compiling": 50.0, "rounds": 5},
    {"first": 1.0, "second": 2.0, "slow": [1.0, 1.0, 2.0, 3.0, 2.0, 3.0], "late": {3: 9.0, 8: 5.0},
     "compiling": 20.0, "rounds": 5},
    {"first": 4.0, "second": 1.0, "slow": [2.0, 3.0, 1.0, 1.0, 2.0, 3.0, 3.0, 2.0],
     "late": {5: 7.0, 7: 7.0, 12: 20.0}, "compiling": 8.0, "rounds": 7},
)  # fmt: skip


def ratio_values(measuring: ModuleType) -> None:
    """the ratio is that of a machine that warms up, drifts and is interrupted (a simulated one)."""
    from hypothesis import strategies as st

    def on_machine(function):
        def ratio(first, second, slow, late, compiling, rounds):
            return function(_Machine(first, second, slow, late, compiling), rounds)

        return ratio

    def students(machine, rounds):
        answer = measuring.ratio(machine.first, machine.second, rounds, machine.clock)
        if machine.calls and not machine.reads:
            raise Wrong("the times are not those of the argument clock: read clock(), not time")
        return answer

    mistakes = {
        text: tuple(map(on_machine, one if isinstance(one, tuple) else (one,)))
        for text, one in _RATIO_MISTAKES.items()
    }

    def check(**inputs):
        compare(on_machine(students), on_machine(_ratio), inputs, mistakes, _TOLERANCE, _MACHINES)

    for machine in _MACHINES:
        check(**machine)
    number = st.integers(1, 9).map(float)
    for_all(
        lambda first, second, slow, at, rounds: check(
            first=first, second=second, slow=slow, late={at: 8.0} if rounds > 2 else {},
            compiling=10.0, rounds=rounds,
        ),
        first=number, second=number, slow=st.lists(number, min_size=1, max_size=9),
        at=st.integers(2, 9), rounds=st.integers(1, 7),
    )  # fmt: skip


def ratio_calls(measuring: ModuleType) -> None:
    """each function runs once for the warm-up and once in each round."""
    machine = _Machine(2.0, 6.0)
    measuring.ratio(machine.first, machine.second, 4, machine.clock)
    calls = {name: machine.calls.count(name) for name in ("first", "second")}
    if set(calls.values()) != {5}:
        why = "with rounds=4 each function runs 5 times: a warm-up, then a call in each round"
        raise Wrong(why, {"rounds": 4}, calls, {"first": 5, "second": 5})


# -------------------------------------------------------------------------------------- conv_ops


def _macs(shape, filters, size, stride, padding, groups):
    channels, height, width = shape
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    return rows * columns * filters * (channels // groups) * size * size


def _conv_ops(shape, filters, size, stride, padding, groups, binary):
    return _macs(shape, filters, size, stride, padding, groups) / (64 if binary else 1)


def _changed(**changes):
    """`_conv_ops` with some arguments replaced, by values or by functions of all of them."""

    def ops(*arguments):
        named = dict(zip(_ARGUMENTS, arguments, strict=True))
        new = {name: value(named) if callable(value) else value for name, value in changes.items()}
        return _conv_ops(**{**named, **new})

    return ops


_ARGUMENTS = ("shape", "filters", "size", "stride", "padding", "groups", "binary")


def _times(factor):
    """`_conv_ops` times a factor, which depends on the arguments."""

    def ops(*arguments):
        return _conv_ops(*arguments) * factor(dict(zip(_ARGUMENTS, arguments, strict=True)))

    return ops


def _rounded_up(shape, filters, size, stride, padding, groups, binary):
    rows, columns = (-(-(side + 2 * padding - size + 1) // stride) + 1 for side in shape[1:])
    of_one = _conv_ops((shape[0], size, size), filters, size, 1, 0, groups, binary)
    return of_one * rows * columns


def _all_pixels(*arguments):
    shape, filters, size, _, _, groups, binary = arguments
    of_one = _conv_ops((shape[0], size, size), filters, size, 1, 0, groups, binary)
    return of_one * shape[1] * shape[2]


_CONV_OPS_MISTAKES = {
    "the pixels of the input are counted; there is a sum for each pixel of the output, whose size "
    "follows from size, stride and padding": _all_pixels,
    "groups are forgotten: a filter sees the channels of its group only, channels / groups":
        _changed(groups=1),
    "groups divide twice: a filter sees channels / groups of the channels, but all filters are "
    "there": _times(lambda a: 1 / a["groups"]),
    "padding is added on one side only; the image grows by 2 * padding":
        lambda *a: _conv_ops((a[0][0], a[0][1] + a[4], a[0][2] + a[4]), *a[1:4], 0, *a[5:]),
    "padding is forgotten: the image grows by 2 * padding": _changed(padding=0),
    "stride is forgotten: only every stride-th position has a sum": _changed(stride=1),
    "size counts once here; a filter has size * size taps in each channel":
        _times(lambda a: 1 / a["size"]),
    "the output's size is rounded up; a window that does not fit in has no sum, so (height + "
    "2 * padding - size) // stride + 1": _rounded_up,
    "the output has one row and one column more than (height + 2 * padding - size) // stride":
        lambda *a: _conv_ops((a[0][0], a[0][1] - a[3], a[0][2] - a[3]), *a[1:]),
    "a product and its addition are two operations here; in this convention a multiply-accumulate "
    "is one": _times(lambda a: 2),
    "products of signs are divided by 32 here; a word has 64 bits":
        _times(lambda a: 2 if a["binary"] else 1),
    "the division by 64 is for signs only; with binary=False nothing is divided":
        _times(lambda a: 1 if a["binary"] else 1 / 64),
    "products of signs are divided by 64, since a word holds 64 of them": _changed(binary=False),
    "binary is the wrong way round: signs are divided by 64, floats are not":
        _changed(binary=lambda a: not a["binary"]),
    "this is rounded; keep the fraction": (
        lambda *a: math.floor(_conv_ops(*a)), lambda *a: math.ceil(_conv_ops(*a)),
        lambda *a: round(_conv_ops(*a))),
    "these are the weights of the layer; each is used at each position of the output":
        (lambda *a: _conv_ops((a[0][0], a[2], a[2]), a[1], a[2], 1, 0, *a[5:]),
         lambda *a: _macs((a[0][0], a[2], a[2]), a[1], a[2], 1, 0, a[5])),
}  # fmt: skip


def conv_ops_values(measuring: ModuleType) -> None:
    """conv_ops counts the products of each position, filter and tap, signs 64 to one."""
    from hypothesis import assume
    from hypothesis import strategies as st

    probes = [
        dict(zip(_ARGUMENTS, values, strict=True))
        for values in (
            ((64, 8, 8), 32, 3, 1, 1, 1, True), ((6, 9, 7), 4, 3, 2, 0, 2, True),
            ((6, 9, 8), 4, 2, 3, 1, 2, False), ((4, 12, 6), 4, 5, 2, 3, 4, True),
        )
    ]  # fmt: skip

    def check(**inputs):
        compare(measuring.conv_ops, _conv_ops, inputs, _CONV_OPS_MISTAKES, _TOLERANCE, probes)

    for probe in probes:
        check(**probe)

    def drawn(channels, height, width, filters, size, stride, padding, groups, binary):
        assume(min(height, width) + 2 * padding >= size)
        check(
            shape=(channels * groups, height, width), filters=filters * groups, size=size,
            stride=stride, padding=padding, groups=groups, binary=binary,
        )  # fmt: skip

    few = st.integers(1, 4)
    for_all(
        drawn, channels=few, height=st.integers(1, 9), width=st.integers(1, 9), filters=few,
        size=few, stride=st.integers(1, 3), padding=st.integers(0, 2), groups=st.integers(1, 3),
        binary=st.booleans(),
    )  # fmt: skip


def conv_ops_defaults(measuring: ModuleType) -> None:
    """a layer of signs with stride 1, no padding and one group is what is left out."""
    inputs = {"shape": (8, 5, 5), "filters": 16, "size": 3}
    compare(measuring.conv_ops, lambda *a: _conv_ops(*a, 1, 0, 1, True), inputs, {}, _TOLERANCE)


# --------------------------------------------------------------------------------- least_seconds


def _bytes(m, n, k, words=lambda k: -(-k // 64), of_sum=4):
    return 8 * words(k) * (m + n) + of_sum * m * n


def _bound(moved=_bytes, products=lambda m, n, k: m * n * k, join=max):
    def seconds(m, n, k, peak, bandwidth):
        return join(products(m, n, k) / peak, moved(m, n, k) / bandwidth)

    return seconds


_least_seconds = _bound()
_LEAST_SECONDS_MISTAKES = {
    "the times are added; counting and moving may overlap, and a bound must hold for the best "
    "program: the larger of the two": _bound(join=lambda a, b: a + b),
    "this is the smaller of the two times; the product needs both, so it takes at least the "
    "larger": _bound(join=min),
    "only the counting is bounded; the bytes have to be moved, too": _bound(join=lambda a, b: a),
    "only the bytes are bounded; the products have to be counted, too": _bound(join=lambda a, b: b),
    "the result is forgotten: m * n integers of 4 bytes are written":
        _bound(lambda m, n, k: _bytes(m, n, k, of_sum=0)),
    "the result has 4 bytes for each integer":
        (_bound(lambda m, n, k: _bytes(m, n, k, of_sum=8)),
         _bound(lambda m, n, k: _bytes(m, n, k, of_sum=1))),
    "rows are counted as k / 8 bytes; each takes whole words, ceil(k / 64) of 8 bytes":
        (_bound(lambda m, n, k: k / 8 * (m + n) + 4 * m * n),
         _bound(lambda m, n, k: -(-k // 8) * (m + n) + 4 * m * n)),
    "the last, incomplete word of each row is left out: ceil(k / 64), which is -(-k // 64)":
        _bound(lambda m, n, k: _bytes(m, n, k, lambda k: k // 64)),
    "there is a word too many where k is a multiple of 64: ceil(k / 64), which is -(-k // 64)":
        _bound(lambda m, n, k: _bytes(m, n, k, lambda k: k // 64 + 1)),
    "a sign has one bit here, not the 4 bytes of a float: ceil(k / 64) words of 8 bytes for a row":
        _bound(lambda m, n, k: 4 * k * (m + n) + 4 * m * n),
    "these are words; each has 8 bytes":
        _bound(lambda m, n, k: -(-k // 64) * (m + n) + 4 * m * n),
    "b is moved once for each row of a here; count each array once":
        _bound(lambda m, n, k: 8 * -(-k // 64) * (m + m * n) + 4 * m * n),
    "there are m rows of a and n rows of b, m + n in all":
        _bound(lambda m, n, k: 8 * -(-k // 64) * m * n + 4 * m * n),
    "each product counts twice; peak is given in products, so there are m * n * k":
        _bound(products=lambda m, n, k: 2 * m * n * k),
    "these are words, not products of signs; peak is given in products, so there are m * n * k":
        (_bound(products=lambda m, n, k: m * n * -(-k // 64)),
         _bound(products=lambda m, n, k: m * n * k / 64)),
    "this is a rate; the seconds are products / peak and bytes / bandwidth":
        (lambda m, n, k, peak, bandwidth: min(peak, bandwidth * m * n * k / _bytes(m, n, k)),
         lambda *a: 1 / _least_seconds(*a)),
}  # fmt: skip


def least_seconds_values(measuring: ModuleType) -> None:
    """least_seconds is the larger of two times, that of counting and that of moving."""
    from hypothesis import strategies as st

    probes = [
        dict(zip(("m", "n", "k", "peak", "bandwidth"), values, strict=True))
        for values in (
            (1, 100, 1000, 1e6, 1e4), (50, 60, 1000, 1e5, 1e6), (2, 3, 128, 1e6, 1e3),
            (4, 8, 65, 1e3, 1e6), (5, 4, 65, 1e6, 1e3), (3, 8, 64, 1e3, 1e3),
        )
    ]  # fmt: skip

    def check(**inputs):
        compare(
            measuring.least_seconds, _least_seconds, inputs, _LEAST_SECONDS_MISTAKES, _TOLERANCE,
            probes,
        )  # fmt: skip

    for probe in probes:
        check(**probe)
    few, rates = st.integers(1, 40), st.sampled_from([1e3, 1e4, 1e5])
    for_all(check, m=few, n=few, k=st.integers(1, 300), peak=rates, bandwidth=rates)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "13.1",
        "paired_t",
        "The mean difference of two networks, seed by seed, in units of its standard error.",
        "Seeds: a paired test",
        (paired_t_values,),
        (
            "How many numbers do you need in the end? Two networks with five seeds give five "
            "differences, and the rest is about those alone.",
            "Three things of the differences: their mean, their standard deviation, and the square "
            "root of how many there are.",
            "np.std divides by S unless it is told ddof=1. The standard error is that deviation "
            "over the square root of S; t is the mean over the standard error.",
        ),
        seconds=20.0,
    ),
    Exercise(
        "13.2",
        "sign_flip_p",
        "An exact p: the share of all choices of signs that give a sum as far from 0.",
        "Without a bell curve: signs flipped",
        (sign_flip_values, sign_flip_ties, sign_flip_is_exact),
        (
            "Write down all choices for the differences 3, 2, -1, and their sums. Which of them "
            "are as far from 0 as 4?",
            "itertools.product((1, -1), repeat=S) gives all choices; each of them times the "
            "differences has a sum.",
            "Compare abs(sum) with abs(own sum) by >=, less 1e-9 times the sum of all magnitudes, "
            "so that rounding decides nothing; then divide the count by 2**S.",
        ),
        seconds=20.0,
    ),
    Exercise(
        "13.3",
        "ratio",
        "How many times as long a second function takes, timed in turn with the first.",
        "Times: in turn, and the median",
        (ratio_values, ratio_calls),
        (
            "What differs between the first call of a function and the second? What if the machine "
            "becomes slower while you measure?",
            "Call both once before anything is timed. Then a loop over rounds, in which the clock "
            "is read before first, between the two, and after second.",
            "Append each round's quotient to a list; statistics.median of the list is the answer. "
            "Read the time by clock() only.",
        ),
        seconds=20.0,
    ),
    Exercise(
        "13.4",
        "conv_ops",
        "The operations of a convolution for one image, 64 products of signs for one.",
        "Counted operations",
        (conv_ops_values, conv_ops_defaults),
        (
            "How many sums does the layer write? How many products does each of them take?",
            "Along one side of the padded image a window of size fits in (side + 2 * padding - "
            "size) // stride + 1 places.",
            "Rows times columns times filters are the sums; each has channels // groups * size * "
            "size products. Divide by 64 if they are products of signs.",
        ),
        seconds=20.0,
    ),
    Exercise(
        "13.5",
        "least_seconds",
        "The roofline's bound for a product of packed signs, from its products and bytes.",
        "The roofline's bound",
        (least_seconds_values,),
        (
            "Two things must be done: products counted, bytes moved. How long does each take, with "
            "nothing else to do?",
            "A row of k signs takes ceil(k / 64) words, which is -(-k // 64), and a word has 8 "
            "bytes. There are m + n rows, and m * n results.",
            "The two times may overlap, so neither can be added to the other: the answer is the "
            "larger one.",
        ),
        seconds=20.0,
    ),
)
