"""Weights that are linear in a parameter, kernel by kernel: masked, scaled, summed, flipped."""

import copy

import net2net
import pytest
import torch
import torch.nn.functional as F
from test_computed_weights import left_alone, randomised, same_or_refused
from torch import nn


class Kernelwise(nn.Conv2d):
    """A convolution with a weight of its own making, of whatever size."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = 0.37
        self.register_buffer("mask", (torch.rand_like(self.weight) < 0.7).to(self.weight))
        self.register_buffer("open", torch.rand_like(self.weight) < 0.7)
        self.register_buffer("kernel_mask", (torch.rand(self.weight.shape[2:]) < 0.7).to(self.weight))
        self.gain = nn.Parameter(torch.rand(self.out_channels))
        self.of_inputs = nn.Parameter(torch.rand(1, self.weight.shape[1], 1, 1))
        self.one = nn.Parameter(torch.rand(1))
        self.factor = nn.Parameter(torch.rand_like(self.weight))

    def made(self, w):
        return w

    def forward(self, x):
        w = self.made(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, w.shape[-1] // 2, self.dilation, self.groups)


def in_place(conv, w):
    conv.weight.data *= conv.mask
    return conv.weight


LINEAR = {
    "scaled": lambda conv, w: w * conv.scale,
    "scaled from the left": lambda conv, w: conv.scale * w / 2,
    "scaled by a parameter": lambda conv, w: w * conv.one,
    "masked": lambda conv, w: w * conv.mask,
    "masked in place": in_place,
    "a mask in another dtype": lambda conv, w: w * conv.mask.float().double(),
    "masked alike": lambda conv, w: w * conv.kernel_mask,
    "a gain for each row": lambda conv, w: w * conv.gain.view(-1, 1, 1, 1),
    "a gain for each input": lambda conv, w: w * conv.of_inputs,
    "a product": lambda conv, w: conv.factor * w,
    "a product of three": lambda conv, w: w * (conv.mask * conv.factor),
    "symmetric": lambda conv, w: w + w.flip(2, 3),
    "rotated": lambda conv, w: torch.rot90(w, 1, (2, 3)),
    "summed": lambda conv, w: w.sum((2, 3), keepdim=True),
    "summed one by one": lambda conv, w: w.sum(2).sum(2)[:, :, None, None],
    "central differences": lambda conv, w: w - 0.7 * F.pad(w.sum((2, 3), keepdim=True), (1, 1, 1, 1)),
    "without means": lambda conv, w: w - w.mean((2, 3), keepdim=True),
    "padded": lambda conv, w: F.pad(w, (1, 1, 1, 1)),
    "negative": lambda conv, w: -w,
    "a part": lambda conv, w: w[:, :, 1:2, 1:2],
    "several": lambda conv, w: (w * conv.mask * conv.gain.view(-1, 1, 1, 1) * conv.scale).flip(2),
}

#: What must not be taken for such.
OTHER = {
    "fan": lambda conv, w: w * w[0].numel() ** -0.5,
    "fan of outputs": lambda conv, w: w / len(w),
    "square": lambda conv, w: w * w,
    "square by a mask": lambda conv, w: (w * conv.mask) * w,
    "absolute": lambda conv, w: w.abs(),
    "clamped": lambda conv, w: w.clamp(-1, 1),
    "of one column": lambda conv, w: w * conv.mask[:, :1],
    "of one row": lambda conv, w: w * conv.mask[:1],
    "made on the way": lambda conv, w: w * torch.ones_like(w).tril(),
    "rotated into the rows": lambda conv, w: torch.rot90(w, 2, (0, 2)),
    "rows turned": lambda conv, w: w + w.flip(0),
    "inputs turned": lambda conv, w: w.flip(1),
    "inputs shifted": lambda conv, w: F.pad(w[:, 1:], (0, 0, 0, 0, 0, 1)),
    "summed over inputs": lambda conv, w: w - w.sum(1, keepdim=True),
    "transposed": lambda conv, w: w + w.transpose(0, 1) if w.shape[0] == w.shape[1] else w,
    "over a weight": lambda conv, w: conv.scale / w,
    "padded with ones": lambda conv, w: F.pad(w, (1, 1, 1, 1), value=1.0),
    "another mask beside": lambda conv, w: w * conv.mask + conv.mask,
    "normalised": lambda conv, w: w / w.norm(),
    "normalised by rows": lambda conv, w: w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1),
    "masked by flags": lambda conv, w: conv.open * w,
    "mask of the weight": lambda conv, w: w * (w > 0),
    "as strided": lambda conv, w: w.as_strided(w.shape, w.stride(), 0) * w.as_strided((1, 1, 1, 1), (1, 1, 1, 1), 5),
}


def network(made, groups=1):
    kind = type("Conv", (Kernelwise,), {"made": made})
    torch.manual_seed(0)
    return randomised(nn.Sequential(
        kind(3, 8, 3), nn.ReLU(), kind(8, 6, 3, groups=groups), nn.BatchNorm2d(6), nn.GELU(), kind(6, 6, 3), nn.SiLU(),
        kind(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1),
    )).eval(), torch.randn(2, 3, 7, 7).double()  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", LINEAR)
def test_the_function_stays(name, groups):
    model, x = network(LINEAR[name], groups)
    for how in ({}, {"split": "random", "noise": "none"}, {"width": 2.3, "mapping": "balanced"}):
        plan = net2net.plan_widen(model, x, **{"width": 1.5, **how})
        student = plan.apply(model)
        assert not left_alone(plan)
        tolerance = 1e-6 if "dtype" in name else 1e-13
        for mode in (False, True):  # copies: some write to their weights
            teacher, mine = (copy.deepcopy(net).train(mode) for net in (model, student))
            assert net2net.verify(teacher, mine, x).max_rel < tolerance
        assert student[0].weight.shape[0] > 8
        assert student[5].weight.shape[1] > 6


@pytest.mark.parametrize("name", OTHER)
def test_what_is_not_linear_stays(name):
    model, x = network(OTHER[name])
    plan = same_or_refused(model, x)
    assert plan is None or name == "as strided" or left_alone(plan)


@pytest.mark.parametrize("name", ["masked", "several", "central differences", "a product", "summed one by one"])
def test_gradients_and_optimizer_state(name):
    """A student's gradient is the teacher's times the shares of the units that it goes into."""
    model, x = network(LINEAR[name])
    model.train()
    plan = net2net.plan_widen(model, x, 1.5, noise="none")
    student = plan.apply(model)
    model(x).square().mean().backward()
    student(x).square().mean().backward()
    expected = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    for p in model.parameters():
        if p.grad is not None:
            expected.state[p]["momentum_buffer"] = p.grad.clone()
    expected = plan.grow_optimizer(expected, student)
    for p in student.parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected.state[p]["momentum_buffer"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_dynamics(optimizer):
    model, x = network(LINEAR["several"])
    model.eval()
    theirs = optimizer(model.parameters(), 1e-3)
    plan = net2net.plan_widen(model, x, 1.5, noise="none")
    student = plan.apply(model)
    mine = plan.grow_optimizer(theirs, student, dynamics=True)
    for _ in range(5):
        for net, how in ((model, theirs), (student, mine)):
            how.zero_grad()
            net(x).square().mean().backward()
            how.step()
    assert net2net.verify(model, student, x).max_rel < 1e-11


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("noise", ["paper", "cancelling"])
def test_masks_are_as_they_were(noise, frozen, tmp_path):
    """Whatever the noise: what does not see something before does not see it after."""
    model, x = network(LINEAR["masked"])
    masks = {name: (torch.rand_like(module.weight) < 0.5).double() for name, module in model.named_children()
             if isinstance(module, Kernelwise)}  # fmt: skip
    for name, mask in masks.items():
        del model[int(name)].mask
        model[int(name)].mask = nn.Parameter(mask, requires_grad=False) if frozen else nn.Buffer(mask)
    plan = net2net.plan_widen(model, x, 1.5, noise=noise)
    plan.save(tmp_path / "plan.json")
    student = net2net.GrowthPlan.load(tmp_path / "plan.json").apply(model)
    for name in masks:
        conv = student[int(name)]
        assert conv.mask.shape == conv.weight.shape
        assert set(conv.mask.unique().tolist()) <= {0.0, 1.0}


class OneChannel(nn.Module):
    """Multipliers with dimensions of size 1, which are weights of other layers too."""

    def __init__(self, shape, layer):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 1, 1), nn.Conv2d(4, 2, 1)
        self.weight, self.other = nn.Parameter(torch.randn(4, 1, 3, 3)), nn.Parameter(torch.randn(shape))
        self.layer = [layer]

    def forward(self, x):
        return self.last(self.layer[0](self.first(x), self.weight, self.other))


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((4, 1, 3, 3), lambda y, w, p: F.conv2d(y, w * p) + F.conv2d(y, p)),
        ((4, 1, 3, 3), lambda y, w, p: F.conv2d(y, p) + F.conv2d(y, p * w)),
        ((1, 1, 3, 3), lambda y, w, p: F.conv2d(y, w * p) * F.conv2d(y, p)),
        ((4, 1, 1, 1), lambda y, w, p: F.conv2d(y, w * p) + F.conv2d(y, p)[..., 1:-1, 1:-1]),
    ],
)
@pytest.mark.parametrize("noise", ["none", "cancelling"])
def test_multipliers_of_one_channel(shape, layer, noise):
    model, x = randomised(OneChannel(shape, layer)).eval(), torch.randn(2, 3, 6, 6).double()
    same_or_refused(model, x, width=2, noise=noise)


def test_a_computed_bias_keeps_its_length():
    weight_norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), weight_norm(nn.Conv2d(4, 4, 1), name="bias"), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    model, x = randomised(model), torch.randn(2, 3, 5, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert [s.layers[0] for s in left_alone(plan)] == ["2"]
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-13
