"""gather_scale's bad input: each raises, by name and value, before anything is written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import Embedded, embed
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import n2n_kernels as nk

NAN, INF = float("nan"), float("inf")


CPU = torch.device("cpu")
Call = dict[str, Any]


def good() -> tuple[Call, list[Embedded]]:
    """A valid call on two tensors, (4, 3, 3, 3) -> (6, 5, 3, 3) and (4,) -> (6,), and its targets, which are poison."""
    g_out, g_in = torch.tensor([0, 1, 2, 3, 0, 2]), torch.tensor([0, 1, 2, 1, 2])
    targets = [embed(shape, torch.float32, "offset", CPU) for shape in ((6, 5, 3, 3), (6,))]
    call = {
        "srcs": [torch.ones(4, 3, 3, 3), torch.ones(4)],
        "out_maps": [g_out, g_out],
        "in_maps": [g_in, None],
        "out_scales": [torch.ones(6), None],
        "in_scales": [torch.ones(5), None],
        "noise_std": 0.1,
        "out": [target.tensor for target in targets],
    }
    return call, targets


def whole(**values: Any) -> Callable[[Call], None]:
    """Replaces whole arguments."""
    return lambda call: call.update(values)


def one(name: str, value: Any, at: int = 0) -> Callable[[Call], None]:
    """Replaces one entry of a list, by a value or by what a function makes of it."""

    def change(call: Call) -> None:
        call[name][at] = value(call[name][at]) if callable(value) else value

    return change


def shortened(t: Tensor, size: int) -> Tensor:
    t.untyped_storage().resize_(size)
    return t


class Subclass(Tensor):
    pass


MAP = [0, 1, 2, 3, 0, 2]

BAD: dict[str, tuple[Callable[[Call], None], type[Exception], str]] = {
    # srcs
    "a tensor for the list": (whole(srcs=torch.ones(2, 3)), TypeError, r"srcs \(=Tensor\) must be a list"),
    "no list": (whole(srcs=7), TypeError, r"srcs \(=int\) must be a list"),
    "an array": (one("srcs", np.ones((4, 3)), 1), TypeError, r"srcs\[1\] \(=ndarray\)"),
    "integers": (one("srcs", Tensor.int), TypeError, r"srcs\[0\]\.dtype \(=torch\.int32\) must be one of float32"),
    "complex": (one("srcs", lambda t: t + 0j), TypeError, r"srcs\[0\]\.dtype \(=torch\.complex64\)"),
    "booleans": (one("srcs", Tensor.bool), TypeError, r"srcs\[0\]\.dtype \(=torch\.bool\)"),
    "sparse": (one("srcs", Tensor.to_sparse), TypeError, r"srcs\[0\]\.layout \(=torch\.sparse_coo\)"),
    "no dimensions": (one("srcs", torch.tensor(1.0), 1), ValueError, r"srcs\[1\] has 0 dimensions \(shape \(\)\)"),
    "six dimensions": (one("srcs", torch.ones([1] * 6)), ValueError, r"srcs\[0\] has 6 dimensions"),
    "a shortened storage": (
        one("srcs", lambda t: shortened(t.clone(), 100)), ValueError,
        r"srcs\[0\] \(shape \(4, 3, 3, 3\)\) needs a storage of 432 bytes, but its own was shortened to 100"
    ),
    "a subclass": (one("srcs", lambda t: t.as_subclass(Subclass)), TypeError, r"srcs\[0\] \(=Subclass\)"),
    "unlike devices": (one("srcs", lambda t: t.to("meta"), 1), ValueError, r"srcs\[1\]\.device \(=meta\)|out\[1\]"),
    # maps
    "a map for the list": (whole(out_maps=torch.tensor(MAP)), TypeError, r"out_maps \(=Tensor\) must be a list"),
    "a list for a map": (one("out_maps", MAP), TypeError, r"out_maps\[0\] \(=list\) must be a torch\.Tensor or None"),
    "an array for a map": (one("in_maps", np.arange(5)), TypeError, r"in_maps\[0\] \(=ndarray\)"),
    "too few maps": (whole(in_maps=[None]), ValueError, "in_maps has 1 entries, but srcs has 2"),
    "too many maps": (whole(out_maps=[None] * 3), ValueError, "out_maps has 3 entries, but srcs has 2"),
    "a map of int32": (one("out_maps", Tensor.int), TypeError, r"out_maps\[0\]\.dtype \(=torch\.int32\)"),
    "a map of floats": (one("in_maps", Tensor.float), TypeError, r"in_maps\[0\]\.dtype \(=torch\.float32\)"),
    "a 2-D map": (one("out_maps", lambda t: t.view(2, 3)), ValueError, r"out_maps\[0\] \(shape \(2, 3\)\)"),
    "a 0-D map": (one("in_maps", torch.tensor(0)), ValueError, r"in_maps\[0\] \(shape \(\)\) must be 1-D"),
    "a map beyond the teacher": (
        one("out_maps", torch.tensor([0, 1, 2, 3, 4, 0])), ValueError, r"out_maps\[0\]\[4\] \(=4\) is outside .* 4"
    ),
    "a negative map": (
        one("in_maps", torch.tensor([0, 1, 2, -1, 0])), ValueError, r"in_maps\[0\]\[3\] \(=-1\) is outside .* 3 units"
    ),
    "a map that drops a unit": (
        one("out_maps", torch.tensor([0, 1, 3, 3, 0, 1]), 1), ValueError, r"out_maps\[1\] drops unit 2"
    ),
    "a map that drops the last unit": (
        one("out_maps", torch.tensor([0, 1, 2, 2, 0, 1])), ValueError, r"out_maps\[0\] drops unit 3"
    ),
    "a map without values": (one("out_maps", lambda t: t.to("meta")), ValueError, r"out_maps\[0\]\.device \(=meta\)"),
    "a map for no axis": (one("in_maps", torch.tensor([0]), 1), ValueError, r"srcs\[1\] is 1-D .*in_maps\[1\]"),
    "a scale for no axis": (one("in_scales", torch.ones(1), 1), ValueError, r"srcs\[1\] is 1-D .*in_scales\[1\]"),
    # scales
    "too few scales": (whole(out_scales=[None]), ValueError, "out_scales has 1 entries, but srcs has 2"),
    "a short scale": (one("out_scales", torch.ones(5)), ValueError, r"out_scales\[0\] has 5 entries, .* axis 0 has 6"),
    "a scale of the teacher's length": (one("in_scales", torch.ones(3)), ValueError, r"in_scales\[0\] has 3 entries"),
    "a scale of integers": (one("in_scales", torch.ones(5).int()), TypeError, r"in_scales\[0\]\.dtype \(=.*int32\)"),
    "a 2-D scale": (one("out_scales", torch.ones(6, 1)), ValueError, r"out_scales\[0\] \(shape \(6, 1\)\)"),
    "a number for a scale": (one("out_scales", 0.5), TypeError, r"out_scales\[0\] \(=float\)"),
    "a scale that is NaN": (
        one("out_scales", torch.tensor([1, 1, NAN, 1, 1, 1])), ValueError, r"out_scales\[0\]\[2\] \(=nan\) must be"
    ),
    "a scale that is infinite": (
        one("in_scales", torch.tensor([1, 1, 1, 1, -INF])), ValueError, r"in_scales\[0\]\[4\] \(=-inf\) must be finite"
    ),
    "a scale beyond float32": (
        one("in_scales", torch.full((5,), 1e300, dtype=torch.float64)), ValueError, r"in_scales\[0\] .*5e\+300.*float32"
    ),
    "a scale without values": (
        one("in_scales", lambda t: t.to("meta")), ValueError, r"in_scales\[0\]\.device \(=meta\)"
    ),
    # noise
    "an unknown noise": (whole(noise="gaussian"), ValueError, r"noise \(='gaussian'\) must be one of 'replicas'"),
    "noise None": (whole(noise=None), ValueError, r"noise \(=None\)"),
    "a negative deviation": (whole(noise_std=-0.1), ValueError, r"noise_std\[0\] \(=-0\.1\)"),
    "a deviation that is NaN": (whole(noise_std=[0.1, NAN]), ValueError, r"noise_std\[1\] \(=nan\)"),
    "an infinite deviation": (whole(noise_std=INF), ValueError, r"noise_std\[0\] \(=inf\)"),
    "a deviation beyond the type": (whole(noise_std=1e38), ValueError, r"noise_std\[0\] \(=1e\+38\) is too large"),
    "too few deviations": (whole(noise_std=[0.1]), ValueError, "noise_std has 1 entries, but srcs has 2"),
    "a deviation that is no number": (whole(noise_std="0.1"), TypeError, r"noise_std \(='0\.1'\) must be a number"),
    "one of them": (whole(noise_std=[0.1, None]), TypeError, r"noise_std\[1\] \(=None\) must be a number"),
    "a negative seed": (whole(seed=-1), ValueError, r"seed \(=-1\) must be in \[0, 2\*\*63\)"),
    "a long seed": (whole(seed=2**63), ValueError, r"seed \(=9223372036854775808\)"),
    "a seed that is no integer": (whole(seed=1.0), TypeError, r"seed \(=1\.0\) must be an integer"),
    "too few tensor ids": (whole(tensor_ids=[1]), ValueError, "tensor_ids has 1 entries, but srcs has 2"),
    "a negative tensor id": (whole(tensor_ids=[0, -1]), ValueError, r"tensor_ids\[1\] \(=-1\)"),
    "a long tensor id": (whole(tensor_ids=[2**32, 0]), ValueError, r"tensor_ids\[0\] \(=4294967296\)"),
    "tensor ids that are no list": (whole(tensor_ids=7), TypeError, r"tensor_ids \(=int\) must be a list of integers"),
    "a tensor id that is no integer": (whole(tensor_ids=["a", 0]), TypeError, r"tensor_ids\[0\] \(='a'\)"),
    # backend
    "an unknown backend": (whole(backend="metal"), ValueError, r"backend \(='metal'\) must be one of cuda, tri"),
    "a backend that is no name": (whole(backend=1), ValueError, r"backend \(=1\) must be one of"),
    # out
    "a tensor for out": (whole(out=torch.ones(2)), TypeError, r"out \(=Tensor\) must be a list"),
    "too few targets": (whole(out=[]), ValueError, "out has 0 entries, but srcs has 2"),
    "None for a target": (one("out", None), TypeError, r"out\[0\] \(=NoneType\)"),
    "the teacher's shape": (
        one("out", torch.ones(4, 3, 3, 3)), ValueError, r"out\[0\]\.shape \(=\(4, 3, 3, 3\)\) must be \(6, 5, 3, 3\)"
    ),
    "another dtype": (
        one("out", torch.ones(6).half(), 1), ValueError, r"out\[1\]\.dtype \(=torch\.float16\) must be torch\.float32"
    ),
    "another device": (one("out", torch.empty(6, device="meta"), 1), ValueError, r"out\[1\]\.device \(=meta\)"),
    "a target of a subclass": (one("out", lambda t: t.as_subclass(Subclass)), TypeError, r"out\[0\] \(=Subclass\)"),
    "an expanded target": (one("out", lambda t: t[:1].expand(6, 5, 3, 3)), ValueError, r"out\[0\] overlaps itself"),
    "a target of windows": (
        one("out", lambda t: t.as_strided((6, 5, 3, 3), (45, 8, 3, 1))), ValueError, r"out\[0\] overlaps itself"
    ),
    "a target with a shortened storage": (
        one("out", lambda t: shortened(torch.empty(6), 20), 1), ValueError,
        r"out\[1\] \(shape \(6,\)\) needs a storage of 24 bytes"
    ),
    "a kernel that does not fold": (
        one("out", lambda t: t.as_strided((6, 5, 3, 3), (45, 9, 1, 3))), ValueError, r"out\[0\] .* are not dense"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    change, error, message = BAD[case]
    call, targets = good()
    sources = list(call["srcs"])
    change(call)
    with pytest.raises(error, match=message):
        nk.gather_scale(**call)
    for target in targets:
        target.assert_untouched()
    assert all(src.eq(1).all() for src in sources)


def test_the_good_call_is_good() -> None:
    """Else every one of the above might fail for another reason than its own."""
    call, targets = good()
    nk.gather_scale(**call)
    for target in targets:
        target.assert_only_inside_written()


def test_an_empty_map() -> None:
    with pytest.raises(ValueError, match=r"out_maps\[0\] drops unit 0"):
        nk.gather_scale([torch.ones(3)], [torch.zeros(0, dtype=torch.int64)], None)


@pytest.mark.parametrize("shift", [-5, -1, 0, 1, 5])
def test_overlapping_targets(shift: int) -> None:
    call, _ = good()
    pool = torch.full((300,), -1.0)
    first = pool[10:280].view(6, 5, 3, 3)
    second = pool[280 + shift : 286 + shift] if shift <= 0 else pool[4 + shift : 10 + shift]
    call["out"] = [first, second]
    if shift == 0:
        nk.gather_scale(**call)  # side by side
        return
    with pytest.raises(ValueError, match=r"out\[.\] overlaps out\[.\]"):
        nk.gather_scale(**call)
    assert pool.eq(-1).all()


@pytest.mark.parametrize("noise", ["replicas", "cancelling"])
@pytest.mark.parametrize("at", [6, 7, 100, 276, 279, 280])
def test_a_target_around_a_source(at: int, noise: str) -> None:
    """Other elements of the source would be read after they were overwritten."""
    call, _ = good()
    pool = torch.ones(300)
    call["out"][0] = pool[10:280].view(6, 5, 3, 3)
    call["srcs"][1] = pool[at : at + 4]
    if at in {6, 280}:
        nk.gather_scale(**call, noise=noise)  # side by side
        return
    with pytest.raises(ValueError, match=r"out\[0\] overlaps srcs\[1\]"):
        nk.gather_scale(**call, noise=noise)
    assert pool.eq(1).all()


def test_a_tensor_onto_itself() -> None:
    w = torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"out\[0\] overlaps srcs\[0\]"):
        nk.gather_scale([w], None, None, out_scales=[torch.zeros(3)], out=[w])
    assert w.eq(1).all()


@pytest.mark.parametrize("name", ["out_maps", "in_maps", "out_scales"])
def test_a_target_on_a_map_or_scale(name: str) -> None:
    call, _ = good()
    given = call[name][0]
    call["out"][1] = given.view(torch.float32)[:6]
    before = given.clone()
    with pytest.raises(ValueError, match=rf"out\[1\] overlaps {name}\[0\]"):
        nk.gather_scale(**call)
    assert given.equal(before)


def test_a_target_at_an_odd_address() -> None:
    raw = bytearray(4 * 6 + 1)
    odd = torch.frombuffer(raw, dtype=torch.float32, offset=1)
    with pytest.raises(ValueError, match=r"out\[0\] lies at an address \(=0x[0-9a-f]+\)"):
        nk.gather_scale([torch.ones(6)], None, None, out=[odd])
    assert raw == bytearray(4 * 6 + 1)


def test_rows_of_2_to_the_31() -> None:
    """The teacher is one element, the student would be 8 GiB: refused, not allocated."""
    g = torch.zeros(2**16, dtype=torch.int64)
    w = torch.ones(1, 1, 1).expand(1, 1, 2**15)
    with pytest.raises(ValueError, match=r"srcs\[0\] would have rows of 2147483648 elements"):
        nk.gather_scale([w], None, [g])


def test_a_backend_that_does_not_serve_the_device(any_device: torch.device) -> None:
    call, targets = good()
    wrong = "cuda" if any_device.type == "cpu" else "cpu"
    with pytest.raises(ValueError, match=rf"backend \(='{wrong}'\) cannot be used for tensors on {any_device.type}"):
        nk.gather_scale([src.to(any_device) for src in call["srcs"]], call["out_maps"], None, backend=wrong)
    with pytest.raises(ValueError, match="cannot be used"):
        nk.gather_scale(**{**call, "backend": "cuda"})
    for target in targets:
        target.assert_untouched()


def test_bad_maps_on_the_device(any_device: torch.device) -> None:
    """On CUDA a bad index inside a kernel would end the process's use of the device."""
    w = torch.ones(3, 2, device=any_device)
    with pytest.raises(ValueError, match=r"out_maps\[0\]\[1\] \(=3\) is outside"):
        nk.gather_scale([w], [torch.tensor([0, 3, 1, 2], device=any_device)], None)
    assert nk.gather_scale([w], None, None)[0].sum() == 6


def test_what_is_wrong_is_said_before_tracing_too() -> None:
    """Fake tensors, as torch.compile uses them, have dtypes, shapes and devices, which are checked."""
    with FakeTensorMode():
        w, g = torch.ones(3, 2), torch.zeros(4, dtype=torch.int64)
        assert nk.gather_scale([w], [g], None)[0].shape == (4, 2)
        with pytest.raises(ValueError, match=r"out_scales\[0\] has 3 entries"):
            nk.gather_scale([w], [g], None, out_scales=[torch.ones(3)])
        with pytest.raises(TypeError, match=r"out_maps\[0\]\.dtype"):
            nk.gather_scale([w], [g.int()], None)


def test_the_kernels_never_see_a_fake_tensor() -> None:
    """The last line of defence: a fake tensor has an address, and it is wrong."""
    with FakeTensorMode():
        w = torch.ones(3, 2)
    with pytest.raises(TypeError, match=r"srcs\[0\] \(=FakeTensor\) is a tensor subclass"):
        nk.GatherScalePlan([w], None, None)
    plan = nk.GatherScalePlan([torch.ones(3, 2)], None, None)
    with pytest.raises(TypeError, match=r"srcs\[0\] \(=FakeTensor\) is a tensor subclass"):
        plan.bind([w])


def test_meta_tensors_give_meta_tensors() -> None:
    """Shapes without memory, as when a model is built on the meta device."""
    w, g = torch.ones(3, 2, 3, 3, device="meta"), torch.tensor([0, 1, 2, 1])
    u = nk.gather_scale([w], [g], None)[0]
    assert u.device.type == "meta"
    assert u.shape == (4, 2, 3, 3)
