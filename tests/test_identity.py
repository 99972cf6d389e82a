"""identity_: values, layouts and bad input, on every backend."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import DTYPES, LAYOUTS, TARGET_LAYOUTS, assert_same_bits, embed, random_weights
from torch import Tensor

import n2n_kernels as nk

CPU = torch.device("cpu")

#: Shape and groups. Wide and narrow, even kernels, one channel.
CASES = [
    ((5, 3), 1),
    ((3, 5), 1),
    ((6, 4), 2),
    ((4, 4, 3), 1),
    ((6, 2, 4), 3),
    ((4, 4, 3, 3), 1),
    ((6, 1, 5, 5), 6),
    ((4, 6, 2, 4), 2),
    ((1, 1, 1, 1), 1),
    ((3, 3, 1, 7), 1),
    ((4, 2, 3, 1, 3), 2),
    ((3, 3, 3, 3, 3), 1),
    ((33, 130), 1),
    ((40, 20, 3, 3), 2),
    # Ones in a row, and ones that are neighbours at a group's end: more than a single one in 16 bytes.
    ((7, 1), 7),
    ((40, 1), 40),
    ((12, 3), 4),
    ((32, 8), 4),
    # Several tiles of 16 KB in every dtype, and in float64 alone.
    ((96, 96, 3), 1),
    ((64, 48, 3, 1), 2),
    ((60, 1, 9, 9), 60),
    ((3, 2, 5, 5, 5), 3),
]


def identity_kernel(shape: tuple[int, ...], groups: int) -> Tensor:
    """The definition, one element at a time."""
    w = np.zeros(shape)
    per_group = shape[0] // groups
    for o in range(shape[0]):
        if o % per_group < shape[1]:
            w[(o, o % per_group, *(n // 2 for n in shape[2:]))] = 1
    return torch.from_numpy(w)


def fitting(layout: str) -> list[tuple[tuple[int, ...], int]]:
    return [(shape, groups) for shape, groups in CASES if len(shape) in LAYOUTS[layout].dims]


@pytest.mark.parametrize("layout", TARGET_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_in_any_layout(backend: str, device: torch.device, dtype: torch.dtype, layout: str) -> None:
    """Each element is written, with these bits, and nothing else is."""
    targets = [embed(shape, dtype, layout, device) for shape, _ in fitting(layout)]
    tensors = [target.tensor for target in targets]
    got = nk.identity_(tensors, groups=[groups for _, groups in fitting(layout)], backend=backend)
    assert all(a is b for a, b in zip(got, tensors, strict=True))
    for target, (shape, groups) in zip(targets, fitting(layout), strict=True):
        assert_same_bits(target.tensor, identity_kernel(shape, groups).to(dtype), f"{shape}, groups {groups}")
        target.assert_only_inside_written()


def test_as_torch_has_it(backend: str, device: torch.device) -> None:
    """torch.nn.init.dirac_ for kernels, eye_ for linear weights."""
    for shape, groups in CASES:
        w = torch.full(shape, torch.nan, device=device)
        nk.identity_([w], groups=groups, backend=backend)
        expected = torch.empty(shape)
        if len(shape) > 2:
            torch.nn.init.dirac_(expected, groups)
        elif groups == 1:
            torch.nn.init.eye_(expected)
        else:
            continue
        assert_same_bits(w, expected, f"{shape}, groups {groups}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_distance_from_a_multiple_of_sixteen_bytes(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """What lies before the first whole vector and behind the last one; tensors that hold no whole one."""
    tensors, expected, pools = [], [], []
    for shape in ((1, 1), (3, 2), (5, 7), (2, 2, 3)):
        n = torch.Size(shape).numel()
        for offset in range(16 // dtype.itemsize + 1):
            pools.append(torch.full((offset + n + 9,), -1.0, dtype=dtype, device=device))
            tensors.append(pools[-1][offset : offset + n].view(shape))
            want = torch.full_like(pools[-1], -1.0, device="cpu")
            want[offset : offset + n] = identity_kernel(shape, 1).to(dtype).flatten()
            expected.append(want)
    nk.identity_(tensors, backend=backend)
    for pool, want in zip(pools, expected, strict=True):
        assert_same_bits(pool, want)


def test_large_enough_to_go_past_the_caches(backend: str, device: torch.device) -> None:
    if backend == "triton" and device.type == "cpu":
        pytest.skip("takes too long under Triton's interpreter")
    pool = torch.full((3000 * 3010 + 9,), -1.0, device=device)  # 36 MB
    w = pool[3:-6].view(3000, 3010)
    nk.identity_([w], backend=backend)
    assert pool[:3].eq(-1).all()
    assert pool[-6:].eq(-1).all()
    assert w.diagonal().eq(1).all()
    assert int(w.count_nonzero()) == 3000


def test_a_convolution_with_it_changes_nothing(backend: str, device: torch.device) -> None:
    x = random_weights((2, 6, 5, 5), torch.float64, 0)
    for groups in (1, 2, 3, 6):
        w = torch.empty(6, 6 // groups, 3, 3, dtype=torch.float64, device=device)
        nk.identity_([w], groups=groups, backend=backend)
        # On the CPU, where a convolution is a plain sum of products.
        assert torch.equal(torch.nn.functional.conv2d(x, w.cpu(), padding=1, groups=groups), x)


def test_one_call_takes_every_dtype_and_a_parameter(backend: str, device: torch.device) -> None:
    tensors = [torch.full((3, 3, 3), torch.nan, dtype=d, device=device) for d in DTYPES * 2]
    parameter = torch.nn.Parameter(torch.zeros(2, 2, device=device))
    nk.identity_([*tensors[:5], parameter, *tensors[5:]], backend=backend)
    for t in tensors:
        assert_same_bits(t, identity_kernel((3, 3, 3), 1).to(t.dtype))
    assert parameter.tolist() == [[1, 0], [0, 1]]
    assert parameter.requires_grad


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0, 3, 3), (2, 2, 0, 3), (2, 2, 0, 0)])
def test_empty_tensors_beside_others(backend: str, device: torch.device, shape: tuple[int, ...]) -> None:
    w = torch.zeros(2, 2, device=device)
    nk.identity_([torch.empty(shape, device=device), w], backend=backend)
    assert w.tolist() == [[1, 0], [0, 1]]


def test_no_tensors_at_all(backend: str) -> None:
    assert nk.identity_([], backend=backend) == []


def test_autograd_hears_of_it(backend: str, device: torch.device) -> None:
    x, saved = torch.ones(2, 2, device=device, requires_grad=True), torch.ones(2, 2, device=device)
    loss = (x * saved).sum()
    nk.identity_([saved], backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.big
def test_more_elements_than_32_bits_count(backend: str, device: torch.device) -> None:
    if backend == "triton" and device.type == "cpu":
        pytest.skip("takes too long under Triton's interpreter")
    n = 65_600
    w = torch.empty(n, n, dtype=torch.bfloat16, device=device)
    nk.identity_([w], backend=backend)
    assert w.diagonal().eq(1).all()
    assert sum(int(part.count_nonzero()) for part in w.split(4096)) == n


class Subclass(Tensor):
    pass


BAD: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a tensor for the list": (torch.ones(2, 2), {}, TypeError, r"tensors \(=Tensor\) must be a list"),
    "an array": ([np.ones((2, 2))], {}, TypeError, r"tensors\[0\] \(=ndarray\)"),
    "None": ([None], {}, TypeError, r"tensors\[0\] \(=NoneType\)"),
    "integers": ([torch.ones(2, 2).int()], {}, TypeError, r"tensors\[0\]\.dtype \(=torch\.int32\)"),
    "a vector": ([torch.ones(2)], {}, ValueError, r"tensors\[0\] has 1 dimensions \(shape \(2,\)\)"),
    "six dimensions": ([torch.ones([1] * 6)], {}, ValueError, r"tensors\[0\] has 6 dimensions"),
    "a subclass": ([torch.ones(2, 2).as_subclass(Subclass)], {}, TypeError, r"tensors\[0\] \(=Subclass\)"),
    "sparse": ([torch.ones(2, 2).to_sparse()], {}, TypeError, r"tensors\[0\]\.layout"),
    "an expanded tensor": ([torch.ones(1, 2).expand(2, 2)], {}, ValueError, r"tensors\[0\] overlaps itself"),
    "a kernel that does not fold": ([torch.ones(2, 2, 3, 4)[..., :3]], {}, ValueError, "that are not dense"),
    "groups that do not divide": ([torch.ones(4, 2)], {"groups": 3}, ValueError, r"groups\[0\] \(=3\) must divide"),
    "no groups": ([torch.ones(4, 2)], {"groups": 0}, ValueError, r"groups\[0\] \(=0\)"),
    "negative groups": ([torch.ones(4, 2)], {"groups": -1}, ValueError, r"groups\[0\] \(=-1\)"),
    "too few groups": ([torch.ones(4, 2)], {"groups": [1]}, ValueError, "groups has 1 entries, but tensors has 3"),
    "groups that are no integer": ([torch.ones(4, 2)], {"groups": [1.5]}, TypeError, r"groups\[0\] \(=1\.5\)"),
    "an unknown backend": ([torch.ones(4, 2)], {"backend": "metal"}, ValueError, r"backend \(='metal'\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    """The good tensors beside the bad one are not written either."""
    tensors, options, error, message = BAD[case]
    good = [embed((2, 2), torch.float32, "offset", CPU) for _ in range(2)]
    if isinstance(tensors, list):
        tensors = [*tensors, *(g.tensor for g in good)]
    groups = options.get("groups", 1)
    with pytest.raises(error, match=message):
        nk.identity_(tensors, **{**options, "groups": [groups, 1, 1] if isinstance(groups, int) else groups})
    for g in good:
        g.assert_untouched()


@pytest.mark.parametrize(
    "views",
    [
        lambda pool: [pool[:4].view(2, 2), pool[3:7].view(2, 2)],
        lambda pool: [pool[:4].view(2, 2), pool[:4].view(2, 2)],
        lambda pool: [pool[:6].view(2, 3), pool[2:4].view(1, 2)],
    ],
    ids=["at the edge", "the same twice", "inside"],
)
def test_overlapping_tensors(views: Callable[[Tensor], list[Tensor]]) -> None:
    pool = torch.full((8,), -1.0)
    with pytest.raises(ValueError, match=r"tensors\[.\] overlaps tensors\[.\]"):
        nk.identity_(views(pool))
    assert pool.eq(-1).all()


def test_unlike_devices() -> None:
    good = embed((2, 2), torch.float32, "offset", CPU)
    with pytest.raises(ValueError, match=r"tensors\[1\]\.device \(=meta\) differs"):
        nk.identity_([good.tensor, torch.empty(2, 2, device="meta")])
    good.assert_untouched()
