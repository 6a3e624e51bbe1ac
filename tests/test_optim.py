"""Optimizers and schedules: PyTorch's numbers, groups, latent weights, Bop, state."""

import copy
import json

import numpy as np
import pytest

from tinybnn import nn, optim, training
from tinybnn.tensor import Tensor

START = np.array([0.5, -1.2, 0.03, 2.0])
GRADS = np.array(
    [
        [0.1, -0.2, 0.3, -0.4],
        [0.5, 0.1, -0.3, 0.2],
        [-0.2, 0.0, 0.7, -0.1],
        [0.05, -0.6, 0.2, 0.9],
        [1.0, -1.0, 0.01, -0.02],
    ]
)

# The weights that PyTorch 2.13 has after the five gradients above, in float64.
RECORDED = [
    ("SGD", {}, [0.355, -1.03, -0.061, 1.942]),
    ("SGD", {"momentum": 0.9}, [0.231799, -0.938488, -0.218383, 1.953124]),
    (
        "SGD", {"momentum": 0.9, "dampening": 0.5},
        [0.345424, -1.028293, -0.155618, 2.058464],
    ),
    (
        "SGD", {"momentum": 0.9, "weight_decay": 0.05},
        [0.20207467467968745, -0.8621078001837501, -0.21769122683259373, 1.8209710202687497],
    ),
    (
        "SGD", {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
        [0.07821491206652349, -0.6991498748731538, -0.2810337155928213, 1.7312885188462934],
    ),
    (
        "Adam", {},
        [0.1756962612386136, -0.9189941157330539, -0.22051700083002884, 2.0895023688462606],
    ),
    (
        "Adam", {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.05},
        [0.16468073158824542, -0.8427386736039937, -0.21603657790360636, 1.9601789795890228],
    ),
    (
        "AdamW", {},
        [0.1739727116979189, -0.9135868261685178, -0.22012245553185653, 2.0790142367880775],
    ),
    (
        "AdamW", {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
        [0.12987892524971045, -0.7640376455095286, -0.20723791175355621, 1.7696334250916388],
    ),
]  # fmt: skip


def parameter(values=START, latent=False, **kw):
    values = np.array(values)
    return nn.LatentParameter(values, **kw) if latent else nn.Parameter(values)


def walk(optimizer, *parameters, grads=GRADS):
    for grad in grads:
        for p in parameters:
            p.grad = Tensor(grad.astype(p.dtype))
        optimizer.step()


@pytest.mark.parametrize(("name", "settings", "expected"), RECORDED)
def test_updates_are_pytorchs(name, settings, expected):
    p = parameter()
    walk(getattr(optim, name)([p], lr=0.1, **settings), p)
    np.testing.assert_allclose(p.data, expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "settings", "expected"), RECORDED)
def test_float32_weights_stay_float32(name, settings, expected):
    p = parameter(START.astype(np.float32))
    # NumPy numbers as settings must not turn the arithmetic into float64.
    optimizer = getattr(optim, name)([p], lr=np.float64(0.1), **settings)
    walk(optimizer, p)
    assert p.dtype == np.float32
    assert all(a.dtype in (np.float32, np.int64) for a in optimizer.state[0].values())
    assert type(optimizer.param_groups[0]["lr"]) is float
    np.testing.assert_allclose(p.data, expected, rtol=1e-5)


SGD_LRS = (0.1, 0.02)  # of two groups


def schedules(optimizer):
    return {
        "step": lambda: optim.StepLR(optimizer, 3, 0.5),
        "cosine": lambda: optim.CosineAnnealingLR(optimizer, 7, 0.01),
        "linear": lambda: optim.LinearLR(optimizer, 0.25, 1.0, 4),
        "linear default": lambda: optim.LinearLR(optimizer),
        "lambda": lambda: optim.LambdaLR(optimizer, lambda epoch: 0.95**epoch),
        "sequential": lambda: optim.SequentialLR(
            optimizer,
            [optim.LinearLR(optimizer, 0.2, 1.0, 3), optim.CosineAnnealingLR(optimizer, 5)],
            [3],
        ),
    }


# Learning rates that PyTorch 2.13 gives for eight epochs, and the second group's in epoch 3.
RATES = [
    ("step", [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025], 0.01),
    (
        "cosine",
        [
            0.1, 0.09554359905560886, 0.08305704108364301, 0.06501344202803415,
            0.04498655797196586, 0.026942958916356993, 0.014456400944391143, 0.01,
        ],
        0.016112604669781573,
    ),
    ("linear", [0.025, 0.04375, 0.0625, 0.08125, 0.1, 0.1, 0.1, 0.1], 0.01625),
    (
        "linear default",
        [0.1 / 3, 0.04666666666666667, 0.06, 0.07333333333333335, 0.08666666666666668] + 3 * [0.1],
        0.01466666666666667,
    ),
    (
        "lambda",
        [
            0.1, 0.095, 0.09025, 0.0857375, 0.081450625, 0.07737809374999999,
            0.07350918906249998, 0.06983372960937498,
        ],
        0.0171475,
    ),
    (
        "sequential",
        [
            0.02, 0.04666666666666667, 0.07333333333333333, 0.1, 0.09045084971874738,
            0.06545084971874737, 0.03454915028125263, 0.009549150281252633,
        ],
        0.02,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "first", "second"), RATES)
def test_schedules_are_pytorchs(name, first, second):
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": SGD_LRS[1]}]
    optimizer = optim.SGD(groups, lr=SGD_LRS[0])
    schedule = schedules(optimizer)[name]()
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        schedule.step()
    np.testing.assert_allclose([a for a, _ in rates], first, rtol=1e-12)
    np.testing.assert_allclose(rates[3][1], second, rtol=1e-12)


def test_schedules_count_from_the_first_value():
    """An optimizer's second schedule does not start from the rate that the first has set."""
    optimizer = optim.SGD([parameter()], lr=0.8)
    optim.LinearLR(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.2
    optim.StepLR(optimizer, 2)
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_schedules_restore():
    for name, _, _ in RATES:
        one, two = (optim.SGD([parameter()], lr=0.1) for _ in range(2))
        schedule, other = schedules(one)[name](), schedules(two)[name]()
        for _ in range(4):
            schedule.step()
        other.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        schedule.step()
        other.step()
        assert two.param_groups[0]["lr"] == one.param_groups[0]["lr"], name


def test_groups_have_settings_of_their_own():
    a, b, c = parameter(), parameter(), parameter()
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 0.01}, {"params": [c]}], lr=0.1)
    optimizer.param_groups[2]["lr"] = 0.2
    walk(optimizer, a, b, c, grads=GRADS[:1])
    for p, lr in ((a, 0.1), (b, 0.01), (c, 0.2)):
        np.testing.assert_allclose(p.data, START - lr * GRADS[0], rtol=1e-12)


def test_parameters_without_gradient_stay():
    a, b = parameter(), parameter()
    optimizer = optim.Adam([a, b], lr=0.1, weight_decay=0.1)
    walk(optimizer, a)
    assert np.array_equal(b.data, START)
    assert optimizer.state[1] == {}
    optimizer.zero_grad()
    assert a.grad is None


# ---------------------------------------------------------------------------------- latent weights


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("decays", [False, True])
def test_decay_leaves_latent_weights_alone_unless_asked(name, decays):
    cls = getattr(optim, name)
    latent, plain, free = parameter(latent=True, clip_value=None), parameter(), parameter()
    walk(cls([latent], lr=0.1, weight_decay=0.3, decay_latents=decays), latent)
    walk(cls([plain], lr=0.1, weight_decay=0.3), plain)
    walk(cls([free], lr=0.1, weight_decay=0.0), free)
    assert not np.array_equal(plain.data, free.data)
    assert np.array_equal(latent.data, plain.data if decays else free.data)


def test_latent_weights_are_clipped():
    clipped, narrow = parameter(latent=True), parameter(latent=True, clip_value=0.25)
    free = parameter(latent=True, clip_value=None)
    walk(optim.SGD([clipped, narrow, free], lr=0.1), clipped, narrow, free, grads=GRADS[:1])
    step = START - 0.1 * GRADS[0]
    np.testing.assert_allclose(clipped.data, np.clip(step, -1, 1))
    np.testing.assert_allclose(narrow.data, np.clip(step, -0.25, 0.25))
    np.testing.assert_allclose(free.data, step)


# --------------------------------------------------------------------------------------------- Bop


def test_bop_by_hand():
    """Two steps of algorithm 1 of Helwegen et al. with numbers that are exact in binary."""
    p = parameter([1.0, 1.0, -1.0, -1.0, 1.0], latent=True)
    optimizer = optim.Bop([p], threshold=0.25, gamma=0.5)
    first = np.array([1.0, -1.0, 1.0, -1.0, 0.5])
    walk(optimizer, p, grads=[first])
    # m = [.5, -.5, .5, -.5, .25], w m = [.5, -.5, -.5, .5, .25]: the last one equals the threshold
    assert optimizer.state[0]["mean"].tolist() == [0.5, -0.5, 0.5, -0.5, 0.25]
    assert p.data.tolist() == [-1, 1, -1, 1, 1]
    walk(optimizer, p, grads=[np.array([0.0, 2.0, -2.0, -1.0, 0.5])])
    # m = [.25, .75, -.75, -.75, .375]
    assert optimizer.state[0]["mean"].tolist() == [0.25, 0.75, -0.75, -0.75, 0.375]
    assert p.data.tolist() == [-1, -1, 1, 1, -1]


def test_bop_makes_signs_of_latent_weights():
    p = parameter([0.3, -0.2, 0.0, -0.0], latent=True)
    walk(optim.Bop([p]), p, grads=[np.zeros(4)])
    assert p.data.tolist() == [1, -1, 1, 1]


def test_bop_at_threshold_zero_does_not_flip_without_gradient():
    p = parameter([1.0, -1.0], latent=True)
    walk(optim.Bop([p], threshold=0.0), p, grads=[np.array([0.0, -0.0])])
    assert p.data.tolist() == [1, -1]


def test_bop_refuses_what_has_no_sign():
    with pytest.raises(TypeError, match="MultiOptimizer"):
        optim.Bop(nn.BatchNorm1d(3).parameters())


def test_bop_and_adam_as_one_optimizer():
    sign, real = parameter(np.sign(START), latent=True), parameter()
    alone, alone_real = parameter(np.sign(START), latent=True), parameter()
    both = optim.MultiOptimizer(optim.Bop([sign], 1e-3, 0.1), optim.Adam([real], lr=0.1))
    schedule = optim.StepLR(both, 2, 0.5)
    bop, adam = optim.Bop([alone], 1e-3, 0.1), optim.Adam([alone_real], lr=0.1)
    for i, grad in enumerate(GRADS):
        walk(both, sign, real, grads=[grad])
        schedule.step()
        bop.param_groups[0]["gamma"] = 0.1 * 0.5 ** (i // 2)
        adam.param_groups[0]["lr"] = 0.1 * 0.5 ** (i // 2)
        walk(bop, alone, grads=[grad])
        walk(adam, alone_real, grads=[grad])
    assert np.array_equal(sign.data, alone.data)
    assert np.array_equal(real.data, alone_real.data)
    both.zero_grad()
    assert sign.grad is None and real.grad is None


# ------------------------------------------------------------------------------------------- state


def make(kind, seed=0):
    p = parameter(START.astype(np.float32), latent=True)
    q = parameter(START[::-1].astype(np.float32))
    if kind == "Bop and Adam":
        return p, q, optim.MultiOptimizer(optim.Bop([p], 1e-3, 0.1), optim.Adam([q]))
    settings = {"momentum": 0.9, "nesterov": True} if kind == "SGD" else {}
    groups = [{"params": [p], "lr": 0.1}, {"params": [q]}]
    return p, q, getattr(optim, kind)(groups, lr=0.01, **settings)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Bop and Adam"])
def test_state_goes_to_another_optimizer(kind):
    p, q, optimizer = make(kind)
    walk(optimizer, p, q)
    optimizer.rates[1][0][optimizer.rates[1][1]] = 0.05
    state = optimizer.state_dict()
    settings = json.loads(json.dumps(state["param_groups"]))
    p2, q2, other = make(kind)
    p2.data[...], q2.data[...] = p.data, q.data
    other.load_state_dict({"state": state["state"], "param_groups": settings})
    assert other.state_dict()["param_groups"] == state["param_groups"]
    walk(optimizer, p, q)
    walk(other, p2, q2)
    assert np.array_equal(p.data, p2.data) and np.array_equal(q.data, q2.data)


def test_loaded_state_is_a_copy_in_the_memory_order_of_the_weight():
    def conv():
        layer = nn.Conv2d(3, 4, 2, bias=False, rng=np.random.default_rng(0))
        return layer, optim.SGD(layer.parameters(), momentum=0.9)

    (layer, optimizer), (_, other) = conv(), conv()
    layer.weight.grad = Tensor(np.ones(layer.weight.shape, np.float32))
    optimizer.step()
    state = optimizer.state_dict()
    array = np.ascontiguousarray(state["state"][0]["velocity"])
    other.load_state_dict({**state, "state": {0: {"velocity": array}}})
    loaded = other.state[0]["velocity"]
    assert loaded.strides == layer.weight.data.strides != array.strides
    assert np.array_equal(loaded, array) and not np.shares_memory(loaded, array)


def test_state_of_another_optimizer_is_refused():
    _, _, adam = make("Adam")
    _, _, sgd = make("SGD")
    with pytest.raises(ValueError, match="settings"):
        adam.load_state_dict(sgd.state_dict())
    p, q, other = make("Adam")
    walk(other, p, q)
    state = other.state_dict()
    state["state"][1]["mean"] = np.zeros(3, np.float32)
    before = adam.state_dict()
    with pytest.raises(ValueError, match=r"mean of parameter 1 has shape \(3,\), expected \(4,\)"):
        adam.load_state_dict(state)
    assert adam.state_dict() == before  # no state before, and none after


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: optim.SGD([]), "no parameters"),
        (lambda p: optim.SGD(p), "list of Tensors"),
        (lambda p: optim.SGD([p, p]), "twice"),
        (lambda p: optim.SGD([p.data]), "expects Tensors, got ndarray"),
        (lambda p: optim.SGD([{"params": [p], "beta": 1}]), r"unknown settings \['beta'\]"),
        (lambda p: optim.SGD([{"lr": 1}]), "'params'"),
        (lambda p: optim.SGD([p], lr=-1), "lr must be >= 0, got -1"),
        (lambda p: optim.SGD([p], lr=float("nan")), "lr must be >= 0, got nan"),
        (lambda p: optim.SGD([p], nesterov=True), "nesterov needs momentum"),
        (lambda p: optim.SGD([p], momentum=0.9, dampening=0.1, nesterov=True), "dampening = 0"),
        (lambda p: optim.Adam([p], betas=(0.9, 1)), "betas"),
        (lambda p: optim.Adam([p], betas=(0.9,)), "betas"),
        (lambda p: optim.Adam([p], eps=-1e-8), "eps"),
        (lambda p: optim.AdamW([p], weight_decay=-1), "weight_decay"),
        (lambda p: optim.Bop([p], threshold=-1), "threshold"),
        (lambda p: optim.Bop([p], gamma=0), "gamma"),
        (lambda p: optim.MultiOptimizer(), "no parameters"),
        (lambda p: optim.MultiOptimizer(p), "expects Optimizers"),
        (lambda p: optim.MultiOptimizer(optim.SGD([p]), optim.Bop([p])), "twice"),
        (lambda p: optim.StepLR(optim.SGD([p]), 0), "step_size"),
        (lambda p: optim.CosineAnnealingLR(optim.SGD([p]), 0), "T_max"),
        (lambda p: optim.LinearLR(optim.SGD([p]), 0), "start_factor"),
        (lambda p: optim.LinearLR(optim.SGD([p]), total_iters=0), "total_iters"),
        (lambda p: optim.LambdaLR(optim.SGD([p]), 0.9), "function"),
        (lambda p: optim.SequentialLR(optim.SGD([p]), [], []), "milestones"),
    ],
)
def test_errors(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(parameter(latent=True))


def test_sequential_errors():
    one, two = optim.SGD([parameter()]), optim.SGD([parameter()])
    parts = [optim.StepLR(one, 1), optim.StepLR(one, 2), optim.StepLR(one, 3)]
    for milestones in ([1], [2, 2], [3, 1], [0, 1]):
        with pytest.raises(ValueError, match="milestones"):
            optim.SequentialLR(one, parts, milestones)
    with pytest.raises(ValueError, match="another optimizer"):
        optim.SequentialLR(two, parts, [1, 2])


# ---------------------------------------------------------------------------------- EDE's steepness


def model_with_ede():
    return nn.Sequential(
        nn.BinaryLinear(4, 3, weight_quantizer="ede_sign"), nn.AdaBinConv2d(1, 2, 1)
    )


def test_ede_schedule_moves_t_evenly_in_its_logarithm():
    model = model_with_ede()
    schedule = optim.EdeSchedule(model, T_max=4)
    values = []
    for _ in range(6):
        t = {model[0].weight_quantizer.t, model[1].weight_quantizer.t}
        assert len(t) == 1
        values.append(t.pop())
        schedule.step()
    np.testing.assert_allclose(values, [1e-3, 1e-2, 1e-1, 1.0, 10.0, 10.0], rtol=1e-12)


def test_chained_schedules_step_together_and_resume():
    def make():
        model = model_with_ede()
        sgd = optim.SGD(model.parameters(), lr=1.0)
        schedules = [optim.CosineAnnealingLR(sgd, 8), optim.EdeSchedule(model, 8)]
        return model, sgd, optim.ChainedScheduler(schedules)

    model, sgd, chained = make()
    for _ in range(3):
        chained.step()
    again, sgd_again, resumed = make()
    resumed.load_state_dict(chained.state_dict())
    sgd_again.load_state_dict(sgd.state_dict())
    assert again[1].weight_quantizer.t == model[1].weight_quantizer.t > 1e-3
    chained.step()
    resumed.step()
    assert sgd_again.param_groups[0]["lr"] == sgd.param_groups[0]["lr"] < 1.0
    assert again[0].weight_quantizer.t == model[0].weight_quantizer.t


def test_ede_schedule_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="no EdeSign"):
        optim.EdeSchedule(nn.Linear(2, 2), 5)
    with pytest.raises(ValueError, match="T_max must be >= 1"):
        optim.EdeSchedule(model_with_ede(), 0)
    with pytest.raises(ValueError, match="t_min <= t_max"):
        optim.EdeSchedule(model_with_ede(), 5, t_min=2.0, t_max=1.0)
    with pytest.raises(ValueError, match="at least one"):
        optim.ChainedScheduler([])


# ------------------------------------------------------------------- going on from stored state


SCHEDULES = {
    "step": lambda o: optim.StepLR(o, 2, 0.5),
    "cosine": lambda o: optim.CosineAnnealingLR(o, 9),
    "linear": lambda o: optim.LinearLR(o, 0.1, total_iters=4),
    "lambda": lambda o: optim.LambdaLR(o, lambda epoch: 0.9**epoch),
    "sequential": lambda o: optim.SequentialLR(
        o, [optim.LinearLR(o, 0.1, total_iters=2), optim.CosineAnnealingLR(o, 6)], [2]
    ),
    "chained": lambda o: optim.ChainedScheduler([optim.CosineAnnealingLR(o, 9)]),
}
OPTIMIZERS = {
    "Adam": lambda p: optim.Adam(p, lr=0.1),
    "groups": lambda p: optim.SGD([{"params": p[:1], "lr": 0.3}, {"params": p[1:]}], 0.1, 0.9),
    "multi": lambda p: optim.MultiOptimizer(
        optim.Bop(p[:1], gamma=0.01), optim.Adam(p[1:], lr=0.2)
    ),
}


@pytest.mark.parametrize("order", ["schedule last", "optimizer last", "schedule made last"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_order_of_construction_and_loading(optimizer, schedule, order):
    """The next epochs have the rates and the weights of the undisturbed run."""

    def parameters():
        return [nn.LatentParameter(np.linspace(-1, 1, 6)), nn.Parameter(np.ones(4))]

    def steps(params, optimizer, schedule, epochs):
        rates = []
        for epoch in epochs:
            rates.append([group[rate] for group, rate in optimizer.rates])
            for p in params:
                p.grad = Tensor(np.sin(epoch + p.data))
            optimizer.step()
            schedule.step()
        return rates, [p.data.copy() for p in params]

    params = parameters()
    first = OPTIMIZERS[optimizer](params)
    first_schedule = SCHEDULES[schedule](first)
    steps(params, first, first_schedule, range(3))
    state = copy.deepcopy((first.state_dict(), first_schedule.state_dict()))
    weights = [p.data.copy() for p in params]
    expected = steps(params, first, first_schedule, range(3, 7))

    params = parameters()
    for p, weight in zip(params, weights, strict=True):
        p.data[...] = weight
    second = OPTIMIZERS[optimizer](params)
    if order == "schedule made last":
        second.load_state_dict(state[0])
    second_schedule = SCHEDULES[schedule](second)
    if order == "optimizer last":
        second_schedule.load_state_dict(state[1])
        second.load_state_dict(state[0])
    else:
        if order == "schedule last":
            second.load_state_dict(state[0])
        second_schedule.load_state_dict(state[1])
    resumed = steps(params, second, second_schedule, range(3, 7))
    assert resumed[0] == expected[0]
    for a, b in zip(resumed[1], expected[1], strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_state_of_another_schedule(schedule):
    adam = optim.Adam([nn.Parameter(np.ones(2))])
    own = SCHEDULES[schedule](adam)
    before = copy.deepcopy(own.state_dict())
    for state in SCHEDULES.values():
        other = state(adam).state_dict()
        if other.keys() != before.keys():
            with pytest.raises(ValueError, match=f"load_state_dict: {type(own).__name__} has the"):
                own.load_state_dict(other)
    for wrong in ({}, before | {"more": 1}, {k: v for k, v in before.items() if k != "last_epoch"}):
        with pytest.raises(ValueError, match="load_state_dict: "):
            own.load_state_dict(wrong)
    assert own.state_dict() == before


def test_the_state_of_other_groups_or_of_fewer_schedules():
    one = optim.StepLR(optim.SGD([nn.Parameter(np.ones(2))]), 2)
    two = optim.StepLR(OPTIMIZERS["groups"]([nn.Parameter(np.ones(2)) for _ in range(2)]), 2)
    with pytest.raises(ValueError, match="StepLR has 1 parameter groups, the state 2"):
        one.load_state_dict(two.state_dict())
    chained = optim.ChainedScheduler([one])
    with pytest.raises(ValueError, match="ChainedScheduler has 1 schedules, the state 2"):
        chained.load_state_dict(optim.ChainedScheduler([one, one]).state_dict())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_incomplete_state_of_an_optimizer(make):
    params = [nn.LatentParameter(np.ones(3)), nn.Parameter(np.ones(2))]
    optimizer = make(params)
    for p in params:
        p.grad = Tensor(np.ones(p.shape))
    optimizer.step()
    whole = copy.deepcopy(optimizer.state_dict())
    for i in whole["state"]:
        for changed in ("more", "less"):
            state = copy.deepcopy(whole)
            if changed == "more":
                state["state"][i]["other"] = np.ones(params[i].shape)
            elif len(state["state"][i]) > 1:
                state["state"][i].popitem()
            else:
                continue
            with pytest.raises(ValueError, match=r"keeps .* of each parameter, the state of"):
                optimizer.load_state_dict(state)
    optimizer.load_state_dict(whole)


def test_reprs_show_all_settings():
    params = [nn.LatentParameter(np.ones(3)), nn.Parameter(np.ones(2))]
    sgd = optim.SGD([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], 0.1, 0.9)
    assert repr(sgd) == (
        "SGD(lr=0.5, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, "
        "decay_latents=False, params=1; lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, "
        "nesterov=False, decay_latents=False, params=1)"
    )
    multi = OPTIMIZERS["multi"](params)
    assert repr(multi).startswith(
        "MultiOptimizer(Bop(threshold=1e-08, gamma=0.01, params=1), Adam("
    )
    assert repr(SCHEDULES["step"](sgd)) == "StepLR(step_size=2, gamma=0.5)"
    assert "lr_lambda=" in repr(SCHEDULES["lambda"](sgd))
    text = repr(optim.ChainedScheduler([SCHEDULES["sequential"](sgd)]))
    assert text.startswith("ChainedScheduler([SequentialLR(schedulers=[LinearLR(start_factor=0.1,")
    model = nn.BinaryLinear(2, 2, weight_quantizer="ede_sign")
    assert repr(optim.EdeSchedule(model, 4)) == "EdeSchedule(T_max=4, t_min=0.001, t_max=10.0)"


# ------------------------------------------------------------------------- groups that come later


def with_gradient(*shape):
    p = nn.Parameter(np.ones(shape, np.float32))
    p.grad = Tensor(np.ones(shape, np.float32))
    return p


def test_a_group_that_is_added():
    first, second = with_gradient(2), with_gradient(3)
    optimizer = optim.SGD([first], lr=0.5)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    optimizer.add_param_group({"params": second, "lr": 0.25})
    schedule.step()
    assert schedule.get_last_lr() == [0.25, 0.125]
    optimizer.step()
    assert np.all(first.data == 0.25) and np.all(second.data == 0.875)
    state = optimizer.state_dict()
    assert [group["params"] for group in state["param_groups"]] == [[0], [1]]
    optim.SGD([{"params": [first]}, {"params": [second]}]).load_state_dict(state)


@pytest.mark.parametrize(
    "group, message",
    [
        ({"params": []}, None),
        ({"lr": 0.1}, "a dict with 'params'"),
        ({"params": [with_gradient(1)], "speed": 1}, r"unknown settings \['speed'\]"),
        ({"params": [with_gradient(1)], "lr": -1}, "lr must be >= 0"),
        ({"params": [np.zeros(1)]}, "expects Tensors, got ndarray"),
    ],
)
def test_a_group_that_does_not_fit(group, message):
    first = with_gradient(2)
    optimizer = optim.SGD([first])
    if message is None:
        return optimizer.add_param_group(group)
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.add_param_group(group)
    with pytest.raises(ValueError, match="appears twice"):
        optimizer.add_param_group({"params": first})
    assert len(optimizer.param_groups) == len(optimizer.state) == 1


def test_a_group_for_one_of_several_optimizers():
    sgd, adam = optim.SGD([with_gradient(2)], 0.5), optim.Adam([with_gradient(3)])
    both = optim.MultiOptimizer(sgd, adam)
    with pytest.raises(TypeError, match=r"multi.optimizers\[0\].add_param_group"):
        both.add_param_group({"params": with_gradient(1)})
    sgd.add_param_group({"params": with_gradient(1)})
    assert [len(g["params"]) for g in both.param_groups] == [1, 1, 1]
    assert [p.shape for p in both.parameters] == [(2,), (1,), (3,)]
    both.step()
    assert both.parameters[1].data[0] == 0.5


def test_gradients_become_zeros_when_asked():
    p = with_gradient(2)
    optimizer = optim.SGD([p])
    optimizer.zero_grad(set_to_none=False)
    assert np.all(p.grad.data == 0)
    optimizer.zero_grad()
    assert p.grad is None
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is None


def test_latent_weights_and_rmsprop():
    p = nn.LatentParameter(np.array([0.999, -0.5], np.float32))
    p.grad = Tensor([-1.0, 0.0])
    optim.RMSprop([p], lr=0.1, weight_decay=0.5).step()
    np.testing.assert_array_equal(p.data, np.float32([1.0, -0.5]))  # clipped, not decayed


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda o: optim.OneCycleLR(o, 0.1), "give total_steps, or epochs and steps_per_epoch"),
        (lambda o: optim.OneCycleLR(o, [0.1, 0.2], 5), "1 groups need 1 max_lr"),
        (lambda o: optim.OneCycleLR(o, 0.1, 5, pct_start=2), "pct_start"),
        (lambda o: optim.OneCycleLR(o, 0.1, 5, anneal_strategy="exp"), "'cos' or 'linear'"),
        (lambda o: optim.ReduceLROnPlateau(o, factor=1.0), "factor must be below 1"),
        (lambda o: optim.ReduceLROnPlateau(o, mode="lower"), "mode must be 'min' or 'max'"),
        (lambda o: optim.ReduceLROnPlateau(o, min_lr=[0, 0]), "1 groups need 1 min_lr"),
        (lambda o: optim.swa_utils.get_ema_avg_fn(1.5), r"decay must lie in \[0, 1\]"),
    ],
)
def test_schedules_that_do_not_fit(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(optim.SGD([with_gradient(2)]))


def test_one_cycle_ends():
    optimizer = optim.Adam([with_gradient(2)])
    schedule = optim.OneCycleLR(optimizer, 0.1, total_steps=3)
    assert optimizer.param_groups[0]["betas"][1] == 0.999
    schedule.step()
    schedule.step()
    with pytest.raises(ValueError, match="step 4 of 3 steps"):
        schedule.step()
    plain = optim.RMSprop([with_gradient(2)])
    assert "momentum" in plain.param_groups[0]
    latent = nn.LatentParameter(np.ones(2, np.float32))
    with pytest.raises(ValueError, match="cycle_momentum=False"):
        optim.OneCycleLR(optim.Bop([latent]), 0.1, total_steps=3)


def test_the_rates_of_chained_schedules():
    optimizer = optim.SGD([with_gradient(2)], lr=1.0)
    model = nn.Sequential(nn.Quantize("ede_sign"))
    step, ede = optim.StepLR(optimizer, 1), optim.EdeSchedule(model, 5)
    chained = optim.ChainedScheduler([step, ede])
    chained.step()
    assert chained.get_last_lr() == [0.1]
    with pytest.raises(ValueError, match="none of the schedules"):
        optim.ChainedScheduler([ede]).get_last_lr()


def test_averages_leave_the_model_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = optim.swa_utils.AveragedModel(model, use_buffers=True)
    for value in (1.0, 3.0):
        for array in model.state_dict().values():
            array[...] = value
        average.update_parameters(model)
    assert np.all(model[0].weight.data == 3.0) and np.all(average.module[0].weight.data == 2.0)
    assert np.all(average.module[1].running_var == 2.0)
    assert int(average.module[1].num_batches_tracked) == 3 and int(average.n_averaged) == 2
    average.eval()
    optim.swa_utils.update_bn([Tensor(np.eye(2, dtype=np.float32))], average)
    assert not average.module[1].training
    assert np.all(average.module[1].running_mean == np.float32(4.0))


@pytest.mark.parametrize("chained", [False, True])
def test_a_run_with_one_cycle_goes_on(tmp_path, chained):
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    batches = [(x[i : i + 10], np.arange(10) % 3) for i in range(0, 40, 10)]

    def run(epochs, **options):
        rng = np.random.default_rng(0)
        layers = nn.Linear(6, 8, rng=rng), nn.GroupNorm(2, 8), nn.BinaryLinear(8, 3, rng=rng)
        model = nn.Sequential(*layers)
        adam = optim.Adam(model.parameters())
        schedule = optim.OneCycleLR(adam, 0.02, total_steps=17)
        training.fit(
            model, batches, epochs=epochs, optimizer=adam, loss=nn.CrossEntropyLoss(),
            schedule=optim.ChainedScheduler([schedule]) if chained else schedule,
            schedule_unit="batch", progress=False, **options,
        )  # fmt: skip
        return nn.utils.parameters_to_vector(model.parameters()).data

    run(2, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(run(4, checkpoint=tmp_path / "run"), run(4))
