"""Filters: one kernel for all channels, copied by code for as many as there are."""

from collections.abc import Callable

import net2net
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXACT = 1e-10


class Filter(nn.Module):
    def __init__(self, weight: Callable[["Filter", int], Tensor], trained: bool) -> None:
        super().__init__()
        self.weight = [weight]
        kernel = torch.randn(1, 1, 3, 3)
        self.kernel = nn.Parameter(kernel) if trained else nn.Buffer(kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[0](self, x.shape[1]), padding=1, groups=x.shape[1])


class Folded(Filter):
    """The channels are put into the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], self.kernel, padding=1).view(x.shape)


def network(layer: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), layer, nn.Conv2d(8, 4, 3)).double()
    for t in (model[1].weight.data, model[1].bias.data, model[1].running_mean, model[1].running_var):
        t.uniform_(0.5, 2)
    return model, torch.randn(2, 3, 8, 8).double()


ONE_KERNEL: dict[str, Callable[[Filter, int], Tensor]] = {
    "repeated": lambda m, n: m.kernel.repeat(n, 1, 1, 1),
    "expanded": lambda m, n: m.kernel.expand(n, -1, -1, -1),
    "expanded and copied": lambda m, n: m.kernel.expand(n, 1, 3, 3).contiguous(),
    "repeated from a matrix": lambda m, n: m.kernel[0, 0].repeat(n, 1, 1, 1),
    "a mean": lambda m, n: m.kernel.new_ones(n, 1, 3, 3) / 9,
    "in the code": lambda m, n: m.kernel.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]).repeat(n, 1, 1, 1),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", [*ONE_KERNEL, "folded"])
def test_one_kernel_for_all_channels(kind: str, trained: bool) -> None:
    layer = Folded(lambda m, _: m.kernel, trained) if kind == "folded" else Filter(ONE_KERNEL[kind], trained)
    model, x = network(layer)
    plan = net2net.plan_widen(model, x, 1.5)
    assert not plan.skipped or kind == "in the code"  # the kernel is not used then
    student = plan.apply(model)
    assert student[0].out_channels == 12
    assert student[3].kernel.shape == (1, 1, 3, 3)
    for training in (False, True):
        assert net2net.verify(model.train(training), student.train(training), x).max_rel < EXACT
    if trained and kind not in ("a mean", "in the code"):
        for m in (model, student):
            m(x).square().sum().backward()
        assert torch.allclose(student[3].kernel.grad, model[3].kernel.grad, rtol=EXACT)


ANOTHER: dict[str, Callable[[Filter, int], Tensor]] = {
    "as strong as there are channels": lambda m, n: m.kernel.repeat(n, 1, 1, 1) / n,
    "one more for each channel": lambda m, n: m.kernel.repeat(n, 1, 1, 1) + torch.arange(n).view(-1, 1, 1, 1),
    "cut from a longer one": lambda m, n: m.kernel.flatten().repeat(n).roll(n).view(n, 1, 3, 3),
    "turned for every other channel": lambda m, n: torch.cat([m.kernel, m.kernel.mT]).repeat(n // 2, 1, 1, 1),
    "as large as there are channels": lambda m, n: m.kernel.repeat(n, 1, 1, n // 8),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ANOTHER)
def test_kernels_that_are_not_the_same(kind: str, trained: bool) -> None:
    layer = Filter(ANOTHER[kind], trained)
    model, x = network(nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1), layer))
    try:
        student = net2net.plan_widen(model, x, 2).apply(model)
    except ValueError as refused:
        assert "nothing was widened" in str(refused)  # noqa: PT017 -- either is right
        return
    assert net2net.verify(model.eval(), student.eval(), x).max_rel < EXACT
