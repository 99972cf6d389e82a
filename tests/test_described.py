"""What tensors are, as rows of a table."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import n2n_kernels as nk
from n2n_kernels import described as module
from n2n_kernels import dtypes
from n2n_kernels.described import Field, described, in_python

NUMBERS = [Field.DEVICE, Field.DTYPE]  # equal for equals, but of each way's own


@pytest.fixture
def in_c() -> None:
    if module._CAPSULE is None:
        pytest.skip("there is no native module, or torch has no C functions for DLPack")


def tensors() -> list[Tensor]:
    w = torch.randn(4, 6, 3, 3)
    freed = torch.zeros(5)
    freed.untyped_storage().resize_(0)
    return [
        w, w.to(memory_format=torch.channels_last), w[1:, ::2], w.transpose(0, 1), w.flatten()[5:], w[:, :1, :1, :1],
        torch.zeros(40).as_strided((2, 1, 3), (12, 7, 2)), torch.zeros(4).as_strided((4, 1, 1, 1), (1, 4, 4, 4)),
        nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(3), requires_grad=False), freed,
        torch.tensor(1.0), torch.empty(0), torch.empty(3, 0, 2), torch.zeros(2, 1, 2, 1, 2), torch.zeros([1, 2] * 4),
        torch.zeros(3).expand(2, 3), torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.bool), torch.frombuffer(bytearray(41), dtype=torch.float64, offset=1),
        *(torch.ones(3, dtype=d) for d in dtypes.TABLE),
    ]  # fmt: skip


def test_torch_tells_in_c_what_it_tells_in_python(in_c: None) -> None:
    given = tensors()
    told, asked = described(given), in_python(given)
    assert np.array_equal(np.delete(told, NUMBERS, 1), np.delete(asked, NUMBERS, 1))
    for a in range(len(given)):
        for b in range(a):
            assert np.array_equal(told[a, NUMBERS], told[b, NUMBERS]) == (given[a].dtype == given[b].dtype)
    assert not set(told[:, NUMBERS].flat) & set(asked[:, NUMBERS].flat)


def test_rows() -> None:
    t = torch.zeros(4, 6, 3, 3).transpose(0, 1)
    (row,) = in_python([t])
    assert row[[Field.ADDRESS, Field.DIM]].tolist() == [t.data_ptr(), 4]
    assert row[Field.SHAPE : Field.STRIDES].tolist() == [6, 4, 3, 3, 0]
    assert row[Field.STRIDES :].tolist() == [9, 54, 3, 1, 0]
    assert described([]).shape == (0, Field.WORDS)


def test_devices_without_memory_are_described_in_python() -> None:
    real, meta = torch.zeros(2, 3), torch.zeros(2, 3, device="meta")
    table = described([real, meta])
    assert np.array_equal(table, in_python([real, meta]))
    assert table[0, Field.DEVICE] != table[1, Field.DEVICE]


@pytest.mark.parametrize("way", ["native", "python"])
def test_plans_take_either_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one after the other: their numbers are no two tensors' difference."""
    w, g = torch.randn(5, 4, 3, 3), torch.tensor([0, 1, 2, 3, 4, 0, 2])
    made_otherwise = nk.GatherScalePlan([w], [g], None)
    if way == "python":
        monkeypatch.setattr(module, "_CAPSULE", None)
    lie: dict[str, Callable[[Tensor], Tensor]] = {
        "contiguous": Tensor.contiguous, "channels_last": lambda t: t.to(memory_format=torch.channels_last),
        "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    }  # fmt: skip
    for plan in (made_otherwise, nk.GatherScalePlan([w], [g], None)):
        for change in lie.values():
            (got,) = plan([change(w)])
            assert torch.equal(got, w[g])
        with pytest.raises(ValueError, match=r"srcs\[0\] \(torch.float64, shape \(5, 4, 3, 3\), on cpu\) is not what"):
            plan([w.double()])
        with pytest.raises(ValueError, match=r"shape \(5, 4, 3\), on cpu\) is not what"):
            plan([w[..., 0]])
        with pytest.raises(ValueError, match=r"shape \(5, 4, 3, 3, 1, 1\), on cpu\) is not what"):
            plan([w[..., None, None]])
        with pytest.raises(ValueError, match=r"on meta\) is not what"):
            plan([w.to("meta")])
        with pytest.raises(TypeError, match=r"srcs\[0\]\.layout \(=torch\.sparse_coo\) must be torch\.strided"):
            plan([w.to_sparse()])


SHAPES = [
    (5,),
    (0,),
    (1,),
    (4, 3),
    (4, 0),
    (1, 1),
    (4, 3, 1),
    (4, 3, 1, 1),
    (1, 3, 1, 1),
    (4, 1, 3, 3),
    (4, 3, 2, 2, 2),
]


@pytest.mark.parametrize("dtype", dtypes.TABLE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_students_lie_in_memory_as_torch_would_lay_them(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """And are new each time: what they are made from has no memory."""
    formats = [torch.contiguous_format, *{4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(len(shape), [])]
    g = torch.arange(shape[0]).repeat(2)
    plan = nk.GatherScalePlan([torch.zeros(shape, dtype=dtype)], [g], None)
    for form in formats:
        w = torch.randn(shape).to(dtype).to(memory_format=form)
        first, second = plan([w])[0], plan([w])[0]
        assert torch.equal(first, w[g])
        assert first.stride() == second.stride()
        if len(shape) < 2 or shape[1] > 1:  # else the formats are one
            assert first.stride() == torch.empty((2 * shape[0], *shape[1:]), memory_format=form).stride()
        if first.numel():
            assert first.data_ptr() != second.data_ptr()
        assert first.untyped_storage().nbytes() == first.nbytes
        first.untyped_storage().resize_(0)  # as sharding does, so it must own its memory


def test_students_are_of_the_mode_that_they_are_made_in() -> None:
    w, g = torch.randn(4, 3), torch.tensor([0, 1, 2, 3, 1])
    plan = nk.GatherScalePlan([w], [g], None)
    with torch.inference_mode():
        assert plan([w])[0].is_inference()
    (grown,) = plan([w])
    assert not grown.is_inference()
    grown.requires_grad_().sum().backward()


class Looking(TorchDispatchMode):
    """Looks at the values of all that operations are given, as a search for NaN does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.numel():
                x.view(-1)[0].item()
        return func(*args, **(kwargs or {}))


def test_modes_see_no_tensor_without_memory() -> None:
    w, g = torch.randn(4, 3), torch.tensor([0, 1, 2, 3, 1])
    plan = nk.GatherScalePlan([w], [g], None)
    with Looking():
        (grown,) = plan([w])
    assert torch.equal(grown, w[g])


def test_outputs_without_memory_are_no_crash() -> None:
    """Where torch makes fake tensors, or looks for what is written to, of all that is no operator."""
    w, g = torch.randn(4, 3), torch.tensor([0, 1, 2, 3, 1])
    plan = nk.GatherScalePlan([w], [g], None)
    for _ in range(2):
        with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="operators only"):
            plan([w])
    with pytest.raises((RuntimeError, ValueError), match=r"no memory|operators only"):
        torch.func.functionalize(lambda x: plan([x])[0])(w)
    zeros = torch._efficientzerotensor(4, 3)
    with pytest.raises(ValueError, match=r"srcs\[0\] \(shape \(4, 3\)\) has no memory"):
        plan([zeros])
    with pytest.raises(ValueError, match=r"out\[0\] \(shape \(5, 3\)\) has no memory"):
        plan([w], [torch._efficientzerotensor(5, 3)])
    with torch.device("meta"):
        assert torch.equal(plan.rows(w, 1, 3), w[1:3])


def test_what_cannot_be_read_in_place_is_bound_too() -> None:
    odd = torch.frombuffer(bytearray(b"\1" * 49), dtype=torch.float32, offset=1).view(4, 3)
    before, g = odd.clone(), torch.tensor([0, 1, 2, 3, 1])
    bound = nk.GatherScalePlan([odd], [g], None).bind([odd])
    odd.data = torch.zeros(2)
    assert torch.equal(bound.run()[0], before[g])
