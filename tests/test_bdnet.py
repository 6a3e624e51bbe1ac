"""BD-Net: its layers against the paper's equations, the networks against published tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deploy import float_output, inputs, randomize

from tinybnn import deploy, models, nn, optim
from tinybnn import functional as F
from tinybnn.analysis import count_operations
from tinybnn.deploy.shapes import infer
from tinybnn.quantizers import sign
from tinybnn.tensor import Tensor, grad
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------------------ channels, h-swish


@given(st.data())
def test_take_channels_and_its_adjoint(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n, height, width = rng.integers(0, 4), rng.integers(1, 4), rng.integers(1, 4)
    channels = data.draw(st.integers(1, 9))
    index = np.array(data.draw(st.lists(st.integers(0, channels - 1), min_size=1, max_size=20)))
    x = rng.integers(-9, 10, (n, channels, height, width)).astype(np.float32)
    y = F.take_channels(x, index)
    assert_identical(y, x[:, index])
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    g = rng.integers(-9, 10, y.shape).astype(np.float32)
    back = F.AddChannels.apply(g, index=index, channels=channels)
    expected = np.zeros_like(x)
    for i, c in enumerate(index):
        expected[:, c] += g[:, i]
    assert_identical(back, expected)
    assert back.transpose(0, 2, 3, 1).flags.c_contiguous
    tensor = Tensor(x, requires_grad=True)
    assert_identical(grad(F.take_channels(tensor, index), tensor, Tensor(g)), expected)


def test_gradients_of_take_channels():
    x = normal(2, 3, 2, 2)
    for function in (
        lambda x: F.take_channels(x, [2, 0, 0, 2, 2]),
        lambda x: F.AddChannels.apply(x, index=np.array([4, 1, 4]), channels=5),
    ):
        gradcheck(function, [x])
        gradgradcheck(lambda x, f=function: f(x) * f(x), [x])


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_channel_shuffle_lets_each_group_read_from_all(groups):
    x = normal(2, 6, 3, 2)
    expected = x.reshape(2, groups, 6 // groups, 3, 2).swapaxes(1, 2).reshape(x.shape)
    assert_identical(F.channel_shuffle(x, groups), expected)
    assert_identical(nn.ChannelShuffle(groups)(Tensor(x)), expected)
    back = F.channel_shuffle(F.channel_shuffle(x, groups), 6 // groups)
    assert_identical(back, x)


@pytest.mark.parametrize(
    ("inner", "outer", "index"),
    [(3, 3, [0, 1, 2]), (2, 4, [0, 1, 0, 1]), (3, 5, [0, 1, 2, 0, 1]), (5, 2, [0, 1])],
)
def test_replicate_channels(inner, outer, index):
    x = normal(2, inner, 3, 2)
    assert_identical(nn.ReplicateChannels(inner, outer)(Tensor(x)), x[:, index])


def test_hardswish_and_hardsigmoid():
    x = np.array([-4.0, -3.0, -1.0, -0.0, 0.0, 1.5, 3.0, 4.0], np.float32)
    expected = np.array([0.0, 0.0, 2 / 6, 0.5, 0.5, 0.75, 1.0, 1.0], np.float32)
    assert_identical(F.hardsigmoid(x), expected)
    assert_identical(nn.Hardsigmoid()(Tensor(x)), expected)
    expected = x * np.clip(x + 3, 0, 6) / 6
    assert_identical(F.hardswish(x), expected)
    assert_identical(nn.Hardswish()(Tensor(x)), expected)
    away_from_kinks = np.array([-4.0, -2.5, -0.3, 0.4, 2.5, 3.5])
    gradcheck(F.hardswish, [away_from_kinks])
    gradgradcheck(F.hardsigmoid, [away_from_kinks])


def test_squeeze_excite():
    rng = np.random.default_rng(0)
    layer = nn.SqueezeExcite(6, 2, rng=rng)
    assert list(layer.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    x = 4 * normal(3, 6, 4, 5)
    w1, b1, w2, b2 = (p.data.reshape(len(p), -1) for p in layer.parameters())
    mean = x.mean((2, 3))
    hidden = np.maximum(mean @ w1.T + b1[:, 0], 0)
    weight = np.clip(hidden @ w2.T + b2[:, 0] + 3, 0, 6) / 6
    np.testing.assert_allclose(layer(Tensor(x)).data, x * weight[:, :, None, None], 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: F.take_channels(np.zeros((2, 3)), [0]), r"must have the shape \(N, C, H, W\)"),
        (lambda: F.take_channels(normal(1, 3, 1, 1), [0, 3]), "lie from 0 to 2, .* got 0 to 3"),
        (lambda: F.take_channels(normal(1, 3, 1, 1), [-1]), "got -1 to -1"),
        (lambda: F.take_channels(normal(1, 3, 1, 1), []), "index must be a 1-D array of ints"),
        (lambda: F.take_channels(normal(1, 3, 1, 1), [0.5]), "index must be a 1-D array of ints"),
        (lambda: F.channel_shuffle(normal(1, 4, 1, 1), 3), "groups=3 must divide the 4 channels"),
        (lambda: F.channel_shuffle(normal(1, 4), 2), r"x of shape \(N, C, H, W\)"),
        (lambda: nn.ChannelShuffle(0), "ChannelShuffle: groups must be an int >= 1"),
        (lambda: nn.ReplicateChannels(3, 0), "ReplicateChannels: out_channels must be"),
        (
            lambda: nn.ReplicateChannels(3, 6)(Tensor(normal(1, 4, 2, 2))),
            r"x must have the shape \(N, 3, H, W\), got \(1, 4, 2, 2\)",
        ),
        (lambda: nn.SqueezeExcite(8, 0), "SqueezeExcite: squeezed must be"),
        (lambda: nn.DualBinaryConv2d(2, 2, 3, branches=0), "DualBinaryConv2d: branches must be"),
        (lambda: nn.DualAdaBinConv2d(2, 2, 3, branches=1.5), "DualAdaBinConv2d: branches must be"),
        (lambda: nn.DualBinaryConv2d(2, 3, 3, groups=2), "groups=2 must divide"),
        (lambda: nn.BinaryDepthwiseConv2d(0, 3), "BinaryDepthwiseConv2d: channels must be"),
    ],
)
def test_errors_of_layers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --------------------------------------------------------------------------- 1.58-bit convolution


def one_tap(boundaries, values, signs):
    """A DualBinaryConv2d of one input, one output and one tap."""
    layer = nn.DualBinaryConv2d(1, 1, 1, branches=len(values))
    for branch, alpha, beta, v in zip(layer.branches, boundaries, values, signs, strict=True):
        branch[0].threshold.data[...] = alpha
        branch[1].scale.data[...] = beta
        branch[1].weight.data[...] = 0.3 * v
    return layer


quarters = st.integers(-8, 8).map(lambda n: np.float32(n / 4))  # so that x meets the boundaries


@given(quarters, quarters, quarters, quarters, st.booleans())
def test_equation_11(alpha_1, alpha_2, beta_1, beta_2, training):
    alpha_1, alpha_2 = sorted((alpha_1, alpha_2))
    layer = one_tap((alpha_1, alpha_2), (beta_1, beta_2), (1, 1)).train(training)
    x = np.arange(-12, 13, dtype=np.float32) / 4
    output = layer(Tensor(x.reshape(-1, 1, 1, 1))).data.ravel()
    expected = np.where(
        x < alpha_1, -beta_1 - beta_2, np.where(x < alpha_2, beta_1 - beta_2, beta_1 + beta_2)
    )
    assert_identical(output, expected)


ORDERS = {  # signs of the two weights: levels below, between and above the boundaries
    (1, 1): lambda a, b: (-a - b, a - b, a + b),
    (-1, -1): lambda a, b: (a + b, b - a, -a - b),
    (1, -1): lambda a, b: (b - a, a + b, a - b),  # highest in the middle
    (-1, 1): lambda a, b: (a - b, -a - b, b - a),  # lowest in the middle
}


@pytest.mark.parametrize("signs", ORDERS)
def test_signs_of_the_weights_decide_the_order_of_the_levels(signs):
    a, b = np.float32(1.5), np.float32(0.25)
    layer = one_tap((-1.0, 1.0), (a, b), signs)
    x = np.array([-2.0, 0.0, 2.0], np.float32).reshape(-1, 1, 1, 1)
    assert_identical(layer(Tensor(x)).data.ravel(), np.float32(ORDERS[signs](a, b)))


@pytest.mark.parametrize(("branches", "bits"), [(1, 1.0), (2, 1.58), (3, 2.0)])
def test_so_many_branches_have_one_level_more(branches, bits):
    boundaries = np.linspace(-1, 1, branches)
    layer = one_tap(boundaries, [0.5] * branches, [1] * branches)
    x = np.linspace(-2, 2, 101, dtype=np.float32).reshape(-1, 1, 1, 1)
    levels = np.unique(layer(Tensor(x)).data)
    assert len(levels) == branches + 1
    assert np.log2(len(levels)) == pytest.approx(bits, abs=0.01)
    np.testing.assert_allclose(np.diff(levels), 1.0)


GEOMETRIES = {
    "regular": {"kernel_size": 3, "padding": 1},
    "depth-wise": {"kernel_size": (3, 5), "padding": (1, 2), "stride": 2, "groups": 70},
    "1×1": {"kernel_size": 1},
    "groups": {"kernel_size": 2, "dilation": 2, "groups": 5},
}


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "ones"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_dual_convolution_is_the_sum_of_its_branches(name, padding_mode, branches):
    rng = np.random.default_rng(0)
    geometry = GEOMETRIES[name]
    layer = nn.DualBinaryConv2d(
        70, 70, branches=branches, padding_mode=padding_mode, rng=rng, **geometry
    )
    randomize(layer, rng)
    x = rng.integers(-8, 9, (2, 70, 7, 5)).astype(np.float32) / 4
    total = None
    weights = layer.binary_weight()
    assert weights.shape == (branches, *layer.branches[0][1].weight.shape)
    options = {k: v for k, v in geometry.items() if k not in ("kernel_size", "padding")}
    (ph, pw) = F.pair("", "", geometry.get("padding", 0), 0)
    for branch, weight in zip(layer.branches, weights, strict=True):
        threshold = branch[0].threshold.data.reshape(-1, 1, 1)
        signs = F.pad(sign(x - threshold), (pw, pw, ph, ph), float(padding_mode == "ones"))
        sums = F.conv2d(signs, weight, **options)
        part = sums * branch[1].scale.data.reshape(-1, 1, 1)
        total = part if total is None else total + part
    for training in (True, False):
        assert_identical(layer.train(training)(Tensor(x)), total)


@st.composite
def dual_networks(draw):
    """(model, shape): 1.58-bit convolutions combined with the other parts of BD-Net."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    channels = pick(1, 5, 64, 70)
    kind = pick(nn.DualBinaryConv2d, nn.DualBinaryConv2d, nn.DualAdaBinConv2d)
    options = {} if kind is nn.DualAdaBinConv2d else {"padding_mode": pick("zeros", "ones")}
    depthwise, stride = draw(st.booleans()), pick(1, 2)
    conv = kind(
        channels, channels, 3, stride, 1, groups=channels if depthwise else 1,
        branches=pick(1, 2, 3), rng=rng, **options,
    )  # fmt: skip
    shortcut = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
    outputs = pick(3, 8, 66)
    size = (2 * draw(st.integers(1, 4)), 2 * draw(st.integers(1, 4)))
    if stride == 1:
        size = tuple(n - draw(st.integers(0, 1)) for n in size)  # odd sizes
    model = nn.Sequential(
        models.blocks.Layer(
            conv, nn.BatchNorm2d(channels), pick(None, nn.RPReLU(channels), nn.Maxout(channels)),
            pick(None, shortcut), draw(st.booleans()),
        ),
        models.blocks.Layer(
            nn.Sequential(
                nn.RSign(channels),
                nn.BinaryConv2d(channels, outputs, 1, input_quantizer=None, rng=rng),
            ),
            nn.BatchNorm2d(outputs), nn.RPReLU(outputs), nn.ReplicateChannels(channels, outputs),
        ),
    )  # fmt: skip
    return randomize(model, rng).eval(), (channels, *size)


@settings(max_examples=40)
@given(dual_networks(), st.integers(0, 2**32 - 1))
def test_dual_convolutions_compile_to_identical_outputs(network, seed):
    model, shape = network
    rng = np.random.default_rng(seed)
    packed = deploy.compile(model, shape)
    x = rng.integers(-8, 9, (3, *shape)).astype(np.float32) / 4  # many at the thresholds
    assert deploy.verify(model, packed, x) > 0
    assert_identical(packed.predict(x, batch_size=2), float_output(model, x))


def test_initial_values_of_a_dual_convolution():
    layer = nn.DualBinaryConv2d(64, 64, 3, padding=1, groups=64, rng=np.random.default_rng(0))
    thresholds = [branch[0].threshold.data for branch in layer.branches]
    for threshold, expected in zip(thresholds, (-1 / 3, 1 / 3), strict=True):
        np.testing.assert_allclose(threshold, expected, rtol=1e-6)
    offsets = [conv.input_offset.data for conv in nn.DualAdaBinConv2d(4, 4, 3).convolutions()]
    np.testing.assert_allclose(np.ravel(offsets), [-1 / 3, 1 / 3], rtol=1e-6)
    single = nn.DualBinaryConv2d(64, 32, 3, branches=1)
    assert not single.branches[0][0].threshold.data.any()
    for branches in (1, 2, 3):
        layer = nn.DualBinaryConv2d(64, 200, 3, branches=branches, rng=np.random.default_rng(1))
        y = layer(Tensor(normal(20, 64, 6, 6))).data
        assert 0.7 < y.var() < 1.4


def test_boundaries_and_values_learn():
    """β gets the sums of its branch; α gets minus the gradient that passes its sign."""
    rng = np.random.default_rng(0)
    layer = nn.DualBinaryConv2d(3, 4, 3, rng=rng)
    x = Tensor(rng.uniform(-0.6, 0.6, (2, 3, 5, 5)).astype(np.float32), requires_grad=True)
    y = layer(x)
    g = normal(*y.shape)
    y.backward(g)
    through = 0.0
    for sign_layer, conv in layer.branches:
        sums = F.conv2d(sign(x.data - sign_layer.threshold.data.reshape(3, 1, 1)),
                        conv.binary_weight())  # fmt: skip
        np.testing.assert_allclose(conv.scale.grad.data, (sums * g).sum((0, 2, 3)), rtol=1e-4)
        through = through + sign_layer.threshold.grad.data
        assert conv.weight.grad.data.any()
    np.testing.assert_allclose(through, -x.grad.data.sum((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_depthwise_is_a_convolution_with_a_group_for_each_channel():
    options = {"stride": 2, "padding": 1, "padding_mode": "ones", "scale": "learned"}
    layer = nn.BinaryDepthwiseConv2d(6, (3, 2), **options, rng=np.random.default_rng(0))
    same = nn.BinaryConv2d(6, 6, (3, 2), groups=6, **options, rng=np.random.default_rng(0))
    for name, array in same.state_dict().items():
        assert_identical(layer.state_dict()[name], array)
    assert layer.weight.shape == (6, 1, 3, 2)
    assert repr(layer) == repr(same).replace("BinaryConv2d", "BinaryDepthwiseConv2d")
    x = Tensor(normal(2, 6, 7, 5))
    assert_identical(layer(x), same(x))


# ------------------------------------------------------------------------------------- the layers


@pytest.mark.parametrize("pre_bn", [False, True])
def test_jacobian_of_the_shortcuts(pre_bn):
    """Eq. 3, α J + I, and with the shortcut before the batch norm Eq. 4, α J + (α + 1) I."""
    conv = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False, rng=np.random.default_rng(0))
    norm = nn.BatchNorm2d(3)
    norm.weight.data[:] = [0.5, 2.0, -3.0]
    norm.running_var[:] = [0.25, 4.0, 1.0]
    layer = models.blocks.Layer(conv, norm, None, nn.Identity(), pre_bn).eval()
    x, v = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    factor = (norm.weight.data / np.sqrt(norm.running_var + norm.eps)).reshape(3, 1, 1)
    moved = layer(Tensor(x + v)).data - layer(Tensor(x)).data
    expected = factor * conv(Tensor(v)).data + (factor + 1 if pre_bn else 1) * v
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-4)


def test_two_convolutions_of_reactnet_are_one_with_a_replicated_shortcut():
    rng = np.random.default_rng(0)
    how = models.blocks.make_method("test", "reactnet")
    layer = randomize(how.pointwise(6, 12, rng=rng), rng).eval()
    rsign, conv = layer.conv
    x = Tensor(normal(2, 6, 4, 3))
    halves = []
    for part in (slice(0, 6), slice(6, 12)):
        norm, half = nn.BatchNorm2d(6), nn.BinaryConv2d(
            6, 6, 1, input_quantizer=None, weight_quantizer=conv.weight_quantizer
        )  # fmt: skip
        half.weight.data[...] = conv.weight.data[part]
        norm.load_state_dict(
            {k: v[part] if v.shape else v for k, v in layer.norm.state_dict().items()}
        )
        halves.append(norm.eval()(half(rsign(x))) + x)
    assert_identical(layer(x), F.cat(halves, 1))


# ------------------------------------------------------------------------------------ the networks

NETWORKS = {
    "mobilenet_v1": models.mobilenet_v1,
    "shufflenet_v1": models.shufflenet_v1,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "resnet18": models.resnet18,
    "resnet20": models.resnet20,
}
MOBILE = ("mobilenet_v1", "shufflenet_v1", "mobilenet_v3_small")

PARAMETERS = {
    "mobilenet_v1": 4_231_976,  # 4.2 million: MobileNets, Table 4
    "shufflenet_v1": 1_865_728,
    "mobilenet_v3_small": 2_542_856,  # 2.5 million: MobileNetV3, Table 4; PyTorch's the same
    "resnet18": 11_689_512,  # PyTorch's
    "resnet20": 269_722,  # 0.27 million: He et al. 2016, Table 6
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_numbers_of_parameters(name):
    model = NETWORKS[name]()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


SHAPES = {  # (channels, pixels on a side) after each layer, as in the publications' tables
    "mobilenet_v1": [
        (32, 112), (64, 112), (128, 56), (128, 56), (256, 28), (256, 28), *[(512, 14)] * 6,
        (1024, 7), (1024, 7),
    ],
    "shufflenet_v1": [
        (24, 112), (24, 56), *[(240, 28)] * 4, *[(480, 14)] * 8, *[(960, 7)] * 4,
    ],
    "mobilenet_v3_small": [
        (16, 112), (16, 56), (24, 28), (24, 28), (40, 14), (40, 14), (40, 14), (48, 14), (48, 14),
        (96, 7), (96, 7), (96, 7), (576, 7),
    ],
    "resnet18": [
        (64, 112), (64, 56), (64, 56), (64, 56), (128, 28), (128, 28), (256, 14), (256, 14),
        (512, 7), (512, 7),
    ],
    "resnet20": [(16, 32)] * 4 + [(32, 16)] * 3 + [(64, 8)] * 3,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_published_shapes(name):
    """Shapes of the float networks; the binary ones have the same."""
    size = 32 if name == "resnet20" else 224
    for method in ("float", "birealnet" if "resnet" in name else "bdnet-a"):
        model = NETWORKS[name](method=method).eval()
        x, shapes = Tensor(np.zeros((0, 3, size, size), np.float32)), []
        for layer in model:
            x = layer(x)
            if x.ndim == 4 and x.shape[2] > 1:
                shapes.append((x.shape[1], x.shape[2]))
        if name == "mobilenet_v1":
            shapes = shapes[:1] + shapes[2::2]  # after the 1×1 of each pair
        if name.startswith("resnet") and method != "float":
            start = 2 if name == "resnet18" else 1
            shapes = shapes[:start] + shapes[start + 1 :: 2]
        assert shapes == SHAPES[name]
        assert x.shape == (0, 10 if name == "resnet20" else 1000)


def kinds(model, kind):
    return [module for module in model.modules() if type(module) is kind]


DEPTHWISE = {  # depth-wise layers, and those of them with a stride
    "mobilenet_v1": (13, 4), "shufflenet_v1": (16, 3), "mobilenet_v3_small": (11, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", MOBILE)
def test_what_a_method_makes_of_the_layers(name):
    build, (layers, strided) = NETWORKS[name], DEPTHWISE[name]
    counts = {}
    for method in ("float", "reactnet", "bdnet-a", "bdnet-b"):
        count = count_operations(build(0.25, 96, 10, method), (3, 96, 96))
        convs = [row.layer for row in count.layers if isinstance(row.layer, nn.Conv2d)]
        wide = [c for c in convs[1:] if c.kernel_size != (1, 1)]
        depthwise = [c for c in wide if c.groups == c.in_channels]
        counts[method] = (
            len([c for c in depthwise if type(c) is nn.Conv2d]),
            len([c for c in depthwise if type(c) is nn.BinaryConv2d]),
            len([c for c in wide if c.groups == 1 and type(c) is nn.BinaryConv2d]),
        )
    assert counts == {
        "float": (layers, 0, 0),
        "reactnet": (0, 0, layers),
        "bdnet-a": (0, 2 * layers, 0),
        "bdnet-b": (strided, 2 * (layers - strided), 0),
    }
    adabin = build(0.25, 32, 10, "bdnet-a", base="adabin")
    assert len(kinds(adabin, nn.DualAdaBinConv2d)) == layers
    assert not kinds(adabin, nn.RSign) and kinds(adabin, nn.Maxout)


@pytest.mark.parametrize("name", MOBILE)
def test_switches(name):
    def layers(**options):
        model = NETWORKS[name](0.25, 32, 10, "bdnet-b", **options)
        duals = kinds(model, nn.DualBinaryConv2d)
        before = [m for m in kinds(model, models.blocks.Layer) if m.pre_bn]
        assert all(type(m.conv) is nn.DualBinaryConv2d for m in before)
        branches = {len(dual.branches) for dual in duals}
        return branches, len(before) == len(duals), bool(kinds(model, nn.ReplicateChannels))

    assert layers() == ({2}, True, True)
    assert layers(dual=False) == ({1}, True, True)
    assert layers(pre_bn=False) == ({2}, False, True)
    assert layers(broadcast_residual=False) == ({2}, True, False)


def test_mobilenet_v1_with_the_shortcut_in_real_layers_and_rounded_channels():
    def blocks(**options):
        model = models.mobilenet_v1(0.3, 32, 10, "bdnet-b", **options)
        return [m for m in kinds(model, models.blocks.Layer) if m.shortcut is not None]

    real = [m for m in blocks(real_pre_bn=True) if type(m.conv) is nn.Conv2d]
    assert len(real) == 4 and all(m.pre_bn for m in real)
    assert not any(m.pre_bn for m in blocks() if type(m.conv) is nn.Conv2d)
    float_network = models.mobilenet_v1(0.3, 32, 10, "float", real_pre_bn=True)
    assert not any(m.pre_bn for m in kinds(float_network, models.blocks.Layer))
    widths = {norm.num_features for norm in kinds(float_network, nn.BatchNorm2d)}
    assert widths == {10, 19, 38, 77, 154, 307}
    rounded = models.mobilenet_v1(0.3, 32, 10, "float", round_nearest=8)
    assert {m.num_features for m in kinds(rounded, nn.BatchNorm2d)} == {8, 16, 40, 80, 152, 304}


def train_one_step(model, size, rng):
    """Take a step of Adam on four images; return the images."""
    x = rng.standard_normal((4, 3, size, size), np.float32)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    before = [p.data.copy() for p in model.parameters()]
    loss = F.cross_entropy(model.train()(Tensor(x)), np.arange(4))
    loss.backward()
    assert loss.item() < 10  # shortcuts do not make the signal explode
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert np.isfinite(parameter.grad.data).all(), name
    optimizer.step()
    changed = [(a != p.data).any() for a, p in zip(before, model.parameters(), strict=True)]
    assert np.mean(changed) > 0.9
    return x


TRAINED = [
    *[(name, {"method": method}) for name in MOBILE for method in ("float", "reactnet", "adabin")],
    *[(name, {"method": "bdnet-a"}) for name in MOBILE],
    *[(name, {"method": "bdnet-b", "base": "adabin"}) for name in MOBILE],
    ("mobilenet_v1", {"method": "bdnet-b", "real_pre_bn": True, "round_nearest": 8}),
    *[
        (name, {"method": "bdnet-b", "dual": False, "pre_bn": False, "broadcast_residual": False})
        for name in MOBILE
    ],
    *[
        (name, {"method": method})
        for name in ("resnet18", "resnet20")
        for method in ("float", "birealnet", "reactnet", "adabin")
    ],
]


@pytest.mark.parametrize(
    ("name", "options"),
    TRAINED,
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)
def test_a_network_trains_and_its_packed_form_is_identical(name, options):
    rng = np.random.default_rng(0)
    size = 16 if name.startswith("resnet") else 32
    model = NETWORKS[name](0.25 if name in MOBILE else 0.125, size, 5, **options, rng=rng)
    x = train_one_step(model, size, rng)
    packed = deploy.compile(model.eval(), (3, size, size))
    assert deploy.verify(model, packed, x) > 0
    logits = packed.predict(x)
    assert np.ptp(logits) > 0
    assert_identical(logits, float_output(model, x))


def test_a_network_on_larger_images():
    """Larger images use the stride and the pooling of the first layers."""
    rng = np.random.default_rng(0)
    for build, width in ((models.resnet18, 0.1), (models.mobilenet_v3_small, 0.25)):
        model = randomize(build(width, 96, 3, "reactnet", rng=rng), rng).eval()
        packed = deploy.compile(model, (3, 96, 96))
        deploy.verify(model, packed, rng.standard_normal((1, 3, 96, 96), np.float32))


def test_a_packed_network_comes_back_from_its_file(tmp_path):
    rng = np.random.default_rng(0)
    model = models.shufflenet_v1(0.25, 32, 4, "bdnet-b", rng=rng)
    packed = deploy.compile(randomize(model, rng).eval(), (3, 32, 32))
    assert {"take_channels", "cat"} <= {step.operation for step in packed.steps}
    packed.save(tmp_path / "model.npz")
    loaded = deploy.PackedModel.load(tmp_path / "model.npz")
    x = inputs(rng, 3, (3, 32, 32))
    assert_identical(loaded.predict(x), float_output(model, x))
    step = next(step for step in loaded.steps if step.operation == "take_channels")
    assert step.arrays["index"].dtype == np.int8
    for index in (step.arrays["index"] + 100, -1 - step.arrays["index"], np.zeros(0, np.int8)):
        step.arrays["index"] = index
        with pytest.raises(ValueError, match=r"\(take_channels\): index must"):
            infer(loaded.input_shape, loaded.steps)


def test_two_real_convolutions_can_meet_in_one_sum():
    class Two(nn.Module):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.first, self.second = (nn.Conv2d(3, 6, k, padding=k // 2, rng=rng) for k in (1, 3))

        def forward(self, x):
            return F.relu(self.first(x) + self.second(x))

    model = Two().eval()
    packed = deploy.compile(model, (3, 5, 6))
    assert deploy.verify(model, packed, normal(3, 3, 5, 6)) > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.mobilenet_v1(method="bnn"), "mobilenet_v1: method must be one of float, "),
        (lambda: models.mobilenet_v1(base="xnor"), "mobilenet_v1: base must be 'reactnet' or"),
        (lambda: models.mobilenet_v1(width=0), "mobilenet_v1: width must be positive, got 0"),
        (lambda: models.mobilenet_v1(input_size=100), "input_size must be a multiple of 32"),
        (lambda: models.mobilenet_v1(input_size=24), "input_size must be a multiple of 16"),
        (lambda: models.mobilenet_v1(input_size="32"), "input_size must be .* got '32'"),
        (lambda: models.mobilenet_v1(stem_stride=3), "mobilenet_v1: stem_stride must be 1 or 2"),
        (lambda: models.shufflenet_v1(method="birealnet"), "shufflenet_v1: method must be"),
        (lambda: models.shufflenet_v1(input_size=48), "shufflenet_v1: input_size must be"),
        (lambda: models.mobilenet_v3_small(input_size=80), "mobilenet_v3_small: input_size must"),
        (lambda: models.mobilenet_v3_small(first_stride=0), "first_stride must be 1 or 2, got 0"),
        (
            lambda: models.resnet18(method="bdnet-a"),
            "resnet18: method must be one of float, bireal",
        ),
        (lambda: models.resnet18(input_size=100), "resnet18: input_size must be a multiple of 32"),
        (lambda: models.resnet20(input_size=30), "resnet20: input_size must be a multiple of 4"),
    ],
)
def test_errors_of_networks(make, message):
    with pytest.raises(ValueError, match=message):
        make()
