"""Codes of views: whatever way a tensor is seen, its elements' codes are those of the same memory."""

import math

import pytest
import torch
from fuzz import cases
from hypothesis import given
from hypothesis import strategies as st
from net2net.shadows import Shadows, compact
from torch import Tensor

VIEWS = {
    "transpose": lambda t: t.transpose(0, -1),
    "split": lambda t: t.view(*t.shape[:-1], 2, t.shape[-1] // 2) if t.is_contiguous() and not t.shape[-1] % 2 else t,
    "merge": lambda t: t.flatten(1) if t.is_contiguous() and t.dim() > 1 else t,
    "select": lambda t: t.select(-1, t.shape[-1] - 1) if t.dim() > 1 else t,
    "select first": lambda t: t.select(0, 0) if t.dim() > 1 else t,
    "narrow": lambda t: t.narrow(-1, t.shape[-1] // 2, t.shape[-1] - t.shape[-1] // 2),
    "step": lambda t: t[..., ::2],
    "step first": lambda t: t[1::2] if t.shape[0] > 1 else t,
    "unsqueeze": lambda t: t.unsqueeze(1),
    "expand": lambda t: t.unsqueeze(0).expand(3, *t.shape),
    "permute": lambda t: t.permute(*range(1, t.dim()), 0),
    "diagonal": lambda t: t.diagonal(dim1=-2, dim2=-1) if t.dim() > 1 else t,
}


@cases(300)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4),
    expanded=st.lists(st.booleans(), min_size=4, max_size=4),
    steps=st.lists(st.sampled_from(sorted(VIEWS)), max_size=5),
    wanted=st.integers(0, 5),
)
def test_codes_of_views(shape: list[int], expanded: list[bool], steps: list[str], wanted: int) -> None:
    """`values` goes through the same views as the tensor whose codes they are; reads in between may change how codes
    are kept."""
    t = torch.zeros(shape)
    kept = [1 if e else n for n, e in zip(shape, expanded, strict=False)]
    values = torch.arange(1, 1 + math.prod(kept)).view(kept).expand(shape)
    dense = values.contiguous()
    shadows = Shadows()
    shadows.set(t, values)
    for i, step in enumerate(steps):
        t, dense = VIEWS[step](t), VIEWS[step](dense)
        if i >= wanted:
            _same(shadows, t, dense)
    _same(shadows, t, dense)


def _same(shadows: Shadows, t: Tensor, dense: Tensor) -> None:
    found = shadows.get(t)
    assert found is not None
    assert torch.equal(found, dense)


def test_what_is_alike_stays_small() -> None:
    t = torch.zeros(2, 197, 36)
    shadows = Shadows()
    shadows.set(t, torch.arange(36).expand(2, 197, 36))
    heads = t.view(2, 197, 3, 3, 4).permute(2, 0, 3, 1, 4)
    assert compact(shadows.get(heads[1])).shape == (1, 3, 1, 4)  # type: ignore[arg-type]
    assert compact(shadows.get(heads[1].transpose(-2, -1))).shape == (1, 3, 4, 1)  # type: ignore[arg-type]


def test_writes_into_a_part() -> None:
    t = torch.zeros(4, 6)
    shadows = Shadows()
    shadows.set(t, torch.full((1, 1), 7).expand(4, 6))
    shadows.set(t[:, :2], torch.full((1, 1), 9).expand(4, 2))
    assert shadows.get(t)[:, :3].tolist() == [[9, 9, 7]] * 4  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_another_dtype_has_no_codes(dtype: torch.dtype) -> None:
    t = torch.zeros(4)
    shadows = Shadows()
    shadows.set(t, torch.arange(4))
    assert shadows.get(t.view(torch.int32).view(torch.int16) if dtype is torch.float16 else t.to(dtype)) is None
