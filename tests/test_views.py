"""views: what a view sees, compared with the memory itself, over chains of views at random."""

import random

import pytest
import torch
from net2net.views import geometry_of, seen
from torch import Tensor


def another_view(x: Tensor, rng: random.Random) -> Tensor:
    """A view of `x` by one operation, where that can be done without copying."""
    d = rng.randrange(x.dim())
    n = x.shape[d]
    kind = rng.choice(["permute", "narrow", "step", "select", "split", "merge"])
    if kind == "permute":
        return x.permute(rng.sample(range(x.dim()), x.dim()))
    if kind == "narrow":
        first = rng.randrange(n)
        return x.narrow(d, first, rng.randint(1, n - first))
    if kind == "step":
        return x[(slice(None),) * d + (slice(None, None, rng.randint(1, 3)),)]
    if kind == "select":
        return x.select(d, rng.randrange(n)) if x.dim() > 1 else x
    factors = [f for f in (2, 3, 4) if n % f == 0]
    if kind == "split":
        return x.unflatten(d, (rng.choice(factors), -1)) if factors else x
    try:
        return x.view(-1)
    except RuntimeError:
        return x


@pytest.mark.parametrize("part", range(4))
def test_views_see_what_is_there(part):
    told = 0
    for seed in range(500 * part, 500 * part + 500):
        rng = random.Random(seed)
        shape = [rng.choice([1, 2, 3, 4, 6, 8]) for _ in range(rng.randint(1, 4))]
        whole = torch.zeros(5000)[rng.randrange(3) :][: torch.Size(shape).numel()].view(shape)
        kept = whole.permute(rng.sample(range(whole.dim()), whole.dim()))
        if rng.random() < 0.2:
            kept = kept.narrow(0, 0, max(1, kept.shape[0] - 1))
        values = torch.arange(10000)[: kept.numel()].view(kept.shape)
        for d in range(kept.dim()):
            if rng.random() < 0.4:
                values = values.narrow(d, 0, 1)
        values = values.expand(kept.shape)
        view = rng.choice([kept, whole])
        for _ in range(rng.randint(1, 4)):
            view = another_view(view, rng)
        memory = torch.full((5010,), -1)
        memory.as_strided(*geometry_of(kept)).copy_(values)
        expected = memory.as_strided(*geometry_of(view))
        for cut in (False, True):
            found = seen(values, geometry_of(kept), geometry_of(view), cut)
            if found is not None:
                told += 1
                assert torch.equal(found, expected), f"seed {seed}, cut {cut}"
    assert told > 500


def test_dimensions_that_are_expanded_stay_so():
    kept = torch.zeros(2, 12, 5)
    values = torch.arange(24).view(2, 12, 1).expand(2, 12, 5)
    found = seen(values, geometry_of(kept), geometry_of(kept.view(2, 3, 4, 5)), cut=True)
    assert found is not None
    assert found.stride(3) == 0
    assert torch.equal(found[..., 0], torch.arange(24).view(2, 3, 4))


def test_overlapping_views_are_not_told():
    kept = torch.zeros(16)
    windows = kept.unfold(0, 4, 2)
    assert seen(torch.arange(16), geometry_of(kept), geometry_of(windows), cut=True) is None
