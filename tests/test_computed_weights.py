"""Weights that layers compute from their parameters: weight normalisation, weight standardisation."""

import copy
import json

import net2net
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def randomised(model):
    torch.manual_seed(0)
    for p in model.parameters():
        p.data = 0.1 + 0.5 * torch.randn_like(p, dtype=torch.float64)
    for name, b in model.named_buffers():
        if b.is_floating_point():
            b.data = torch.rand_like(b, dtype=torch.float64) + (0.5 if name.endswith("var") else -0.5)
    return model.double()


def old_weight_norm(module, name="weight", dim=0):
    return nn.utils.weight_norm(module, name, dim)


NORMS = {"parametrised": parametrizations.weight_norm, "by a hook": old_weight_norm}


def vocoder(norm):
    """Convolutions, transposed ones and grouped ones: of the transposed one, the norms are those of its inputs."""
    return nn.Sequential(
        norm(nn.Conv1d(4, 12, 3, padding=1)), nn.LeakyReLU(), norm(nn.ConvTranspose1d(12, 8, 4, 2, 1)), nn.LeakyReLU(),
        norm(nn.Conv1d(8, 8, 3, padding=1, groups=2)), nn.GELU(), norm(nn.Conv1d(8, 6, 3, padding=1)), nn.SiLU(),
        nn.Conv1d(6, 2, 1),
    ), torch.randn(2, 4, 10)  # fmt: skip


def perceptron(norm):
    last = norm(nn.Linear(7, 3), "weight", 1)
    return nn.Sequential(norm(nn.Linear(5, 9)), nn.SiLU(), norm(nn.Linear(9, 7)), nn.SiLU(), last), torch.randn(2, 5)


def positions(norm):
    """As in wav2vec 2.0: one norm for each place of the kernel."""
    return nn.Sequential(
        nn.Conv1d(4, 8, 1), norm(nn.Conv1d(8, 8, 5, padding=2, groups=4), "weight", 2), nn.SiLU(),
        norm(nn.Conv1d(8, 6, 5, padding=2), "weight", 2), nn.SiLU(), nn.Conv1d(6, 3, 1),
    ), torch.randn(2, 4, 9)  # fmt: skip


class Computed(nn.Conv2d):
    """A convolution with a weight of its own making."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def made(self, w):
        raise NotImplementedError

    def forward(self, x):
        made = self.made(self.weight)
        return F.conv2d(x, made, self.bias, self.stride, self.padding, self.dilation, self.groups)


ALL = (1, 2, 3)


class ByBatchNorm(Computed):
    def made(self, w):
        flat, gain = w.reshape(1, self.out_channels, -1), (self.gain * self.scale).view(-1)
        return F.batch_norm(flat, None, None, gain, training=True, momentum=0.0, eps=1e-6).reshape_as(w)


class ByMoments(Computed):
    def made(self, w):
        var = torch.var(w, ALL, unbiased=False, keepdim=True)
        return (w - w.mean(ALL, keepdim=True)) * (var + 1e-5).rsqrt()


class ByVarMean(Computed):
    def made(self, w):
        var, mean = torch.var_mean(w, dim=ALL, keepdim=True, unbiased=False)
        return (w - mean) / torch.sqrt(var + 1e-10)


class OneByOne(Computed):
    def made(self, w):
        w = w - w.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        std = w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return w / std.expand_as(w)


class Flattened(Computed):
    def made(self, w):
        flat = w.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(w)


class WithGain(ByMoments):
    def made(self, w):
        return self.gain * (super().made(w) * self.scale)


class Centred(Computed):
    def made(self, w):
        return w - w.mean(ALL, keepdim=True)


STANDARDISED = [ByBatchNorm, ByMoments, ByVarMean, OneByOne, Flattened, WithGain, Centred]


def standardised(kind):
    return nn.Sequential(
        kind(3, 8, 3, padding=1), nn.GroupNorm(1, 8), nn.ReLU(), kind(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(),
        kind(8, 8, 3, padding=1, groups=2), nn.ReLU(), kind(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1),
    ), torch.randn(2, 3, 9, 9)  # fmt: skip


MODELS = {
    **{f"{build.__name__} {how}": (build, norm) for build in (vocoder, perceptron, positions) for how, norm in
       NORMS.items()},
    **{kind.__name__: (standardised, kind) for kind in STANDARDISED},
}  # fmt: skip


@pytest.fixture(params=MODELS)
def case(request):
    build, how = MODELS[request.param]
    model, x = build(how)
    return randomised(model).eval(), x.double()


@pytest.mark.parametrize("width", [1.25, 1.5, 2, 3])
def test_the_function_stays(case, width):
    model, x = case
    plan = net2net.plan_widen(model, x, width)
    student = plan.apply(model)
    assert plan.computed
    assert not left_alone(plan)
    assert net2net.verify(model, student, x).max_rel < 1e-13
    assert net2net.verify(model.train(), student.train(), x).max_rel < 1e-13
    assert sum(p.numel() for p in student.parameters()) > sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("how", [{"noise": "none"}, {"split": "random"}, {"split": "dyadic"}, {"mapping": "balanced"}])
def test_however_it_is_chosen(case, how):
    model, x = case
    assert net2net.verify(model, net2net.widen(model, x, 1.6, **how), x).max_rel < 1e-13


def test_replicas_learn_apart(case):
    model, x = case
    student = net2net.widen(model, x, 2).train()
    student(x).square().mean().backward()
    for name, p in student.named_parameters():
        if p.dim() > 1 and p[0].numel() > 1:
            rows = p.grad.flatten(1)
            alive = rows[rows.norm(dim=1) > 1e-3 * rows.norm()]
            assert (torch.pdist(alive) > 1e-6 * rows.norm()).all(), name


def test_every_way_gives_the_same_bits(case, tmp_path):
    model, x = case
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model).state_dict()
    plan.save(tmp_path / "plan.json")
    loaded = net2net.GrowthPlan.load(tmp_path / "plan.json")
    torch.save(model.state_dict(), tmp_path / "teacher.pt")
    report = loaded.grow_checkpoint(tmp_path / "teacher.pt", tmp_path / "student.pt")
    assert report.tensors == len(student)
    ways = [
        loaded.grow_state_dict(model.state_dict()),
        torch.load(tmp_path / "student.pt", weights_only=True),
        loaded.apply(
            copy.deepcopy(model) if not has_hooks(model) else model, consume=not has_hooks(model)
        ).state_dict(),
    ]
    for way in ways:
        assert list(way) == list(student)
        assert all(torch.equal(way[name], t) for name, t in student.items())


def has_hooks(model):
    """Modules with the older weight norm cannot be copied by `copy.deepcopy` when they have run."""
    return any(module._forward_pre_hooks for module in model.modules())


def test_other_precisions(case):
    model, x = case
    student = net2net.widen(model.float(), x.float(), 1.5)
    assert net2net.verify(model, student, x.float()).max_rel < 1e-5


def test_the_optimizer_comes_along(case):
    model, x = case
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    plan = net2net.plan_widen(model, x, 1.5)
    student = plan.apply(model)
    grown = plan.grow_optimizer(optimizer, student)
    student(x).square().mean().backward()
    grown.step()
    assert all(torch.isfinite(p).all() for p in student.parameters())
    with pytest.raises(ValueError, match="dynamics cannot be kept where weights are computed"):
        plan.grow_optimizer(optimizer, student, dynamics=True)


def test_attributes_and_names_are_those_of_the_layer():
    model, x = vocoder(parametrizations.weight_norm)
    plan = net2net.plan_widen(model, x, {"0": 20, "4": 16})
    student = plan.apply(model)
    assert (student[0].out_channels, student[2].in_channels) == (20, 20)
    assert (student[4].groups, student[4].in_channels, student[4].out_channels) == (4, 16, 16)
    assert [w.layers[0] for w in plan.widened] == ["0", "2"]


def by_columns(w):
    return w - w.mean((0, 2, 3), keepdim=True)


def of_the_first_row(w):
    return w - w.mean(ALL, keepdim=True)[:1]


def by_one_number(w):
    return (w - w.mean(ALL, keepdim=True)) / w.var()


def by_the_mean(w):
    mean = w.mean(ALL, keepdim=True)
    return (w - mean) / (mean + 1)


def mean_again(w):
    var, mean = torch.var_mean(w, ALL, keepdim=True)
    return (w - mean) / var + mean


def by_kernel(w):
    var, mean = torch.var_mean(w, (2, 3), keepdim=True)
    return (w - mean) / (var + 1)


def not_centred(w):
    return w / w.var(ALL, keepdim=True)


def bent(w):
    return (w - w.mean(ALL, keepdim=True)).relu()


def rows_of_nine(w):
    w = w - w.mean(ALL, keepdim=True)
    return w / w.view(-1, 9).std(1).view(w.shape[0], -1, 1, 1)


def of_two_minds(w):
    w = w - w.mean(ALL, keepdim=True)
    return w / w.var(ALL, keepdim=True) * w.var(ALL, keepdim=True, unbiased=False)


def transposed(w):
    w = w.transpose(0, 1)
    return (w - w.mean(ALL, keepdim=True)).transpose(0, 1)


def left_alone(plan):
    """What runs and stays. (Not each of these networks uses all of its parameters.)"""
    return [s for s in plan.skipped if "does not run" not in s.reason]


def same_or_refused(model, x, width=1.5, **how):
    """The plan, if there is one."""
    try:
        plan = net2net.plan_widen(model, x, width, **how)
    except ValueError:
        return None
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-13
    return plan


@pytest.mark.parametrize(
    "made",
    [by_columns, of_the_first_row, by_one_number, by_the_mean, mean_again, by_kernel, not_centred, bent, rows_of_nine,
     of_two_minds, transposed],
)  # fmt: skip
def test_what_is_not_known_stays(made):
    class Other(Computed):
        def made(self, w):
            return made(w)

    model = randomised(nn.Sequential(Other(4, 8, 3), nn.ReLU(), Other(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))).eval()
    x = torch.randn(2, 4, 8, 8).double()
    same_or_refused(model, x)


FORMULAS = {
    "variance": lambda w, v, m: (w - m) / torch.sqrt(v * w[0].numel() + 1e-4),
    "clamped": lambda w, v, m: (w - m) * torch.rsqrt(torch.clamp(v * w[0].numel(), min=1e-4)),
    "behind": lambda w, v, m: (w - m) / (v + 1e-5).sqrt() * w[0].numel() ** -0.5,
    "inputs": lambda w, v, m: (w - m) / (v + 1e-5).sqrt() / w.shape[1],
    "centred": lambda w, v, m: (w - m) * w[0].numel() ** -0.5,
    "eps": lambda w, v, m: (w - m) / (v + 1 / w[0].numel()).sqrt(),
    "exponent": lambda w, v, m: (w - m) * (v + 1e-5) ** (-1 / w[0].numel()),
    "batch norm": lambda w, v, m: F.batch_norm(
        w.reshape(1, len(w), -1), None, None, training=True, eps=1 / w[0].numel()
    ).view_as(w),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_constants_that_the_width_tells_are_noticed(name):
    class Fan(Computed):
        def made(self, w):
            return FORMULAS[name](w, *torch.var_mean(w, ALL, keepdim=True))

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Fan(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1))
    plan = same_or_refused(randomised(model).eval(), torch.randn(2, 3, 8, 8).double())
    assert plan is None or [s.layers[0] for s in left_alone(plan)] == ["0"]


@pytest.mark.parametrize("width", [9, 12, 16])
def test_rows_whose_replicas_are_at_the_mean(width):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.SiLU(), ByVarMean(8, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 1))
    model, x = randomised(model).eval(), torch.randn(2, 3, 6, 6).double()
    row = torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0]).double()
    model[2].weight.data[:2] = row.view(8, 1, 1)
    plan = net2net.plan_widen(
        model, x, {"0": width}, mapping={"0": [*range(8), *[7, 6, 7, 5, 7, 4, 3, 2][: width - 8]]}
    )
    student = plan.apply(model)
    assert net2net.verify(model, student, x).max_rel < 1e-13
    assert student[2].weight.abs().max() < 100


@pytest.mark.parametrize("correction", [0, 1, 2, 3])
def test_linear_layers_and_any_correction(correction, tmp_path):
    class Standard(nn.Linear):
        def forward(self, x):
            w = self.weight
            made = (w - w.mean(1, keepdim=True)) / (w.var(1, keepdim=True, correction=correction) + 1e-5).sqrt()
            return F.linear(x, made, self.bias)

    model = nn.Sequential(Standard(5, 6), nn.SiLU(), Standard(6, 7), nn.SiLU(), nn.Linear(7, 3))
    model, x = randomised(model).eval(), torch.randn(4, 5).double()
    plan = net2net.plan_widen(model, x, 1.5)
    plan.save(tmp_path / "plan.json")
    student = net2net.GrowthPlan.load(tmp_path / "plan.json").apply(model)
    assert len(plan.computed) == 2
    assert net2net.verify(model, student, x).max_rel < 1e-13


class Crosswise(nn.Module):
    """Standardised along what it makes, not along what it sums over."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 2, 1)
        self.weight = nn.Parameter(torch.randn(8, 6, 3, 3))

    def forward(self, x):
        var, mean = torch.var_mean(self.weight, ALL, keepdim=True)
        return self.last(F.conv_transpose2d(self.first(x).relu(), (self.weight - mean) / var.sqrt()).relu())


class Shared(nn.Module):
    """The same weight as it is, and standardised."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x):
        x = self.first(x).relu()
        var, mean = torch.var_mean(self.weight, ALL, keepdim=True)
        return self.last((F.conv2d(x, (self.weight - mean) / var.sqrt()) + F.conv2d(x, self.weight)).relu())


class GainElsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 8, 1))
        self.next = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.next(self.conv(x).relu())
        return self.last((x * self.next.parametrizations.weight.original0.view(1, -1, 1, 1)).relu())


@pytest.mark.parametrize("kind", [Crosswise, Shared, GainElsewhere])
def test_what_cannot_grow_is_reported(kind):
    model, x = randomised(kind()).eval(), torch.randn(2, 3, 7, 7).double()
    plan = same_or_refused(model, x)
    assert plan is None or left_alone(plan)


def test_a_damaged_plan_is_refused():
    model, x = vocoder(parametrizations.weight_norm)
    document = json.loads(json.dumps(net2net.plan_widen(model, x, 1.5).document()))
    for change in ({"gain": "8.weight"}, {"dim": 7}, {"kind": "other"}, {"weight": "nowhere"}, {"gain": 1}):
        damaged = copy.deepcopy(document)
        damaged["computed"][0] |= change
        with pytest.raises(ValueError, match=r"computed|damaged|nowhere"):
            net2net.GrowthPlan.from_document(damaged, "plan.json")


def test_a_weight_of_zeros_is_no_nan():
    model, x = standardised(ByVarMean)
    model = randomised(model).eval()
    model[3].weight.data[2] = 0.25  # a constant row: its variance is 0
    assert net2net.verify(model, net2net.widen(model, x.double(), 1.5), x.double()).max_rel < 1e-12
