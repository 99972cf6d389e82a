"""The paper's Inception network: its depth, its channels, its shapes, and what it refuses."""

import dataclasses
import re

import pytest
import torch
from net2net.models import InceptionBN, inception_bn
from net2net.models.inception import CHANNELS, INITIAL_BN_BIAS, ConvBNReLU
from torch import nn

TINY = 1 / 32  # the least that keeps every layer at more than one channel


def channels_of(model: InceptionBN) -> dict[str, int]:
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize(("extra_pairs", "longest"), [(0, 47), (1, 69), (2, 91)])
def test_weight_layers_are_the_papers(extra_pairs: int, longest: int) -> None:
    model = inception_bn(10, base=TINY, extra_pairs=extra_pairs)
    assert model.weight_layers() == (25, longest)
    assert (25, longest) == (3 + 11 * 2, 3 + 11 * (4 + 2 * extra_pairs))


def test_weight_layers_are_counted_on_the_network_as_it_is() -> None:
    model = inception_bn(10, base=TINY)
    layer = model.inception_modules()[0].short
    model.inception_modules()[0].short = nn.Sequential(layer, ConvBNReLU(2, 2, (1, 1)))
    assert model.weight_layers() == (26, 47)


def test_standard_network_has_about_11_million_parameters() -> None:
    with torch.device("meta"):
        model = inception_bn(1000)
    assert sum(p.numel() for p in model.parameters()) == 10_931_688


def test_channel_table_is_what_the_layers_have_and_what_the_docstring_says() -> None:
    with torch.device("meta"):
        model = inception_bn(1000)
    rows = re.findall(r"(inception\d\w) +(\d+) +(\d+) +(\d+) +(\d+); +(\d+) +(\d+)", inception_bn.__doc__ or "")
    assert [row[0] for row in rows] == [row.name for row in CHANNELS]
    for documented, row, module in zip(rows, CHANNELS, model.inception_modules(), strict=True):
        assert tuple(map(int, documented[1:])) == (*dataclasses.astuple(row)[1:], row.output)
        prefix = {n: m.out_channels for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
        assert prefix == {
            "reduce.conv": row.reduce,
            "short.conv": row.short,
            "middle.pair0.vertical.conv": row.middle,
            "middle.pair0.horizontal.conv": row.middle,
            "long.reduce.conv": row.long_reduce,
            "long.pair0.vertical.conv": row.long,
            "long.pair0.horizontal.conv": row.long,
        }


@pytest.mark.parametrize(("stem", "size", "modules_at"), [("imagenet", 64, 8), ("small", 16, 8), ("small", 28, 14)])
def test_shapes(stem: str, size: int, modules_at: int) -> None:
    model = inception_bn(7, in_channels=2, base=TINY, stem=stem).eval()
    x = torch.randn(3, 2, size, size)
    assert model.stem(x).shape[2:] == (modules_at, modules_at)
    y = model(x)
    assert y.shape == (3, 7)
    assert y.isfinite().all()


def test_imagenet_sizes() -> None:
    with torch.device("meta"):
        model = inception_bn(1000)
        x = torch.empty(1, 3, 224, 224)
        sides = []
        for module in model.inception_modules():
            module.register_forward_hook(lambda _m, _args, out: sides.append(tuple(out.shape[1:])))
        assert model(x).shape == (1, 1000)
    assert [side for _, side, _ in sides] == [28] * 3 + [14] * 5 + [7] * 3
    assert [channels for channels, _, _ in sides] == [row.output for row in CHANNELS]


def test_all_layers_learn() -> None:
    model = inception_bn(4, in_channels=1, base=TINY, stem="small")
    model(torch.randn(4, 1, 16, 16)).logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_width_narrows_the_modules_alone() -> None:
    standard, narrow = inception_bn(10, base=0.5), inception_bn(10, width=0.3**0.5, base=0.5)
    for name, channels in channels_of(standard).items():
        expected = channels if name.startswith("stem.") else round(channels * 0.3**0.5)
        assert abs(channels_of(narrow)[name] - expected) <= (0 if name.startswith("stem.") else 1), name


def test_narrow_teacher_has_30_percent_of_the_weights() -> None:
    with torch.device("meta"):
        standard, narrow = inception_bn(1000), inception_bn(1000, width=0.3**0.5)
    weights, narrow_weights = _module_weights(standard), _module_weights(narrow)
    assert narrow_weights / weights == pytest.approx(0.3, abs=0.01)


def _module_weights(model: InceptionBN) -> int:
    # The first module is left out: its first layer's input is the stem's output, which is not narrower.
    return sum(c.weight.numel() for m in model.inception_modules()[1:] for c in m.modules() if isinstance(c, nn.Conv2d))


def test_base_scales_the_stem_too() -> None:
    assert channels_of(inception_bn(10, base=0.125))["stem.conv3.conv"] == 24
    assert min(channels_of(inception_bn(10, base=1e-6)).values()) == 1


def test_every_pair_has_a_name_and_gives_its_horizontal_layers_output() -> None:
    model = inception_bn(3, in_channels=1, base=TINY, stem="small", extra_pairs=1).eval()
    names = model.pair_names()
    assert len(names) == 11 * 2 * 2
    assert names[:2] == ["body.inception3a.middle.pair0", "body.inception3a.middle.pair1"]
    seen: dict[str, torch.Tensor] = {}
    for name in (names[0], names[0] + ".horizontal.relu"):
        model.get_submodule(name).register_forward_hook(lambda _m, _args, out, name=name: seen.update({name: out}))
    model(torch.randn(1, 1, 16, 16))
    assert seen[names[0]] is seen[names[0] + ".horizontal.relu"]
    pair = model.get_submodule(names[0])
    assert (pair.vertical.conv.kernel_size, pair.horizontal.conv.kernel_size) == ((3, 1), (1, 3))


def test_every_layer_has_a_rectifier_of_its_own() -> None:
    model = inception_bn(3, base=TINY)
    layers = [m for m in model.modules() if isinstance(m, ConvBNReLU)]
    assert len({id(layer.relu) for layer in layers}) == len(layers) == 3 + 11 * 7
    assert all(layer.conv.bias is None for layer in layers)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = inception_bn(10, base=0.5)
    conv = model.get_submodule("body.inception5c.middle.pair0.vertical.conv")
    fan_in = conv.in_channels * 3
    assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    norm = model.get_submodule("body.inception5c.middle.pair0.vertical.bn")
    assert norm.weight.unique().tolist() == [1.0]
    assert norm.bias.unique().tolist() == [INITIAL_BN_BIAS]
    torch.manual_seed(0)
    again = inception_bn(10, base=0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, r"num_classes \(=0\) must be at least 1"),
        ({"num_classes": 2.5}, TypeError, r"num_classes \(=2.5\) must be an int"),
        ({"extra_pairs": -1}, ValueError, r"extra_pairs \(=-1\) must be at least 0"),
        ({"in_channels": 0}, ValueError, r"in_channels \(=0\) must be at least 1"),
        ({"in_channels": True}, TypeError, r"in_channels \(=True\) must be an int"),
        ({"width": 0.0}, ValueError, r"width \(=0.0\) must be positive and finite"),
        ({"width": float("nan")}, ValueError, r"width \(=nan\) must be positive and finite"),
        ({"width": "wide"}, TypeError, r"width \(='wide'\) must be a number"),
        ({"base": -1.0}, ValueError, r"base \(=-1.0\) must be positive and finite"),
        ({"base": float("inf")}, ValueError, r"base \(=inf\) must be positive and finite"),
        ({"stem": "large"}, ValueError, r"stem \(='large'\) must be one of \('imagenet', 'small'\)"),
        ({"dropout": 1.0}, ValueError, r"dropout \(=1.0\) must be in \[0, 1\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        inception_bn(**{"num_classes": 10, **arguments})  # type: ignore[arg-type]
