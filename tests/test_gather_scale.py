"""gather_scale: values, layouts and bits, on every backend."""

from typing import Any

import numpy as np
import pytest
import torch
from gather_scale_cases import LARGE, SMALL, Case, Teacher, arguments, assert_as_defined, teachers
from kernel_cases import (
    DTYPES,
    FORMATS,
    LAYOUTS,
    TARGET_LAYOUTS,
    assert_same_bits,
    dyadic_split,
    embed,
    every_half,
    from_bits,
    place,
    random_weights,
    widening_map,
)
from torch import Tensor

import n2n_kernels as nk

HALVES = [torch.bfloat16, torch.float16]
NOISES: list[dict[str, Any]] = [
    {},
    {"noise": "replicas", "noise_std": 0.3, "seed": 2**40 + 7},
    {"noise": "cancelling", "noise_std": 0.3, "seed": 2**40 + 7},
]

#: NumPy, in which Triton's interpreter computes, warns of what some tests do on purpose.
not_finite = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning:triton")
overflows = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning:triton")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_of_the_source(backend: str, device: torch.device, dtype: torch.dtype, layout: str) -> None:
    given = teachers(SMALL, dtype, layout=layout)
    call = arguments(given, device, layout=layout)
    before = [src.clone() for src in call["srcs"]]
    got = nk.gather_scale(**call, backend=backend)
    assert_as_defined(got, given)
    for src, copy in zip(call["srcs"], before, strict=True):
        assert_same_bits(src, copy, "the source")


@pytest.mark.parametrize("layout", TARGET_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout_of_the_target(backend: str, device: torch.device, dtype: torch.dtype, layout: str) -> None:
    """Each element is written, and nothing else."""
    given = teachers(SMALL, dtype, layout=layout, shuffled=True)
    targets = [embed(t.student_shape, dtype, layout, device) for t in given]
    out = [target.tensor for target in targets]
    got = nk.gather_scale(**arguments(given, device), out=out, backend=backend)
    assert all(a is b for a, b in zip(got, out, strict=True))
    assert_as_defined(got, given)
    for target in targets:
        target.assert_only_inside_written()


@pytest.mark.parametrize("options", NOISES, ids=["none", "replicas", "cancelling"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_from_every_backend(
    backend: str, device: torch.device, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """The reference on the CPU, from contiguous tensors, gives the bits; device and layout change nothing.

    One call with every layout in it, as a source's and as a target's; and a tensor that has no maps.
    """
    given, call, targets = [], {}, []
    for i, layout in enumerate([*LAYOUTS, "contiguous"]):
        some = teachers(SMALL, dtype, layout=layout, shuffled=True)
        some = [some[i % len(some)] if i < len(LAYOUTS) else some[-1]]
        target_layout = layout if layout in TARGET_LAYOUTS else "slice"
        given += some
        targets += [embed(t.student_shape, dtype, target_layout, device) for t in some]
        for name, values in arguments(some, device, layout=layout).items():
            call[name] = call.get(name, []) + values
    expected = nk.gather_scale(**arguments(given, torch.device("cpu")), **options, backend="reference")
    got = nk.gather_scale(**call, **options, out=[target.tensor for target in targets], backend=backend)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_same_bits(a, b, f"tensor {i} of shape {given[i].student_shape}")
        targets[i].assert_only_inside_written()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tiles(backend: str, device: torch.device, dtype: torch.dtype, layout: str) -> None:
    given = teachers(LARGE, dtype, layout=layout)
    assert_as_defined(nk.gather_scale(**arguments(given, device, layout=layout), backend=backend), given)


@pytest.mark.parametrize("options", NOISES[1:], ids=["replicas", "cancelling"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tiles_with_noise(backend: str, device: torch.device, dtype: torch.dtype, options: dict[str, Any]) -> None:
    # Triton's interpreter takes seconds for what the others do in milliseconds: few rows, some longer than a tile.
    interpreted = [Case((5, 130, 3, 3), 7, 200), Case((1, 500, 3, 3), 2, 520)]
    given = teachers(interpreted if backend == "triton" and device.type == "cpu" else LARGE, dtype)
    expected = nk.gather_scale(**arguments(given, torch.device("cpu")), **options, backend="reference")
    got = nk.gather_scale(**arguments(given, device), **options, backend=backend)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_same_bits(a, b, f"tensor {i} of shape {given[i].student_shape}")


def test_one_call_takes_every_dtype(backend: str, device: torch.device) -> None:
    given = [t for dtype in DTYPES for t in teachers(SMALL, dtype)]
    given = given[::2] + given[1::2]  # dtypes alternate
    assert_as_defined(nk.gather_scale(**arguments(given, device), backend=backend), given)


@pytest.mark.parametrize("which", ["out", "in", "both", "none"])
def test_scales_without_maps_and_maps_without_scales(backend: str, device: torch.device, which: str) -> None:
    out_scale = torch.tensor([2.0, -0.5, 3.0]).double() if which in {"out", "both"} else None
    in_scale = torch.tensor([0.25, 5.0, -1.0, 1.5]).double() if which in {"in", "both"} else None
    w = random_weights((3, 4, 3, 3), torch.float32, 0)
    given = [
        Teacher(w, None, None, out_scale, in_scale),
        Teacher(w, torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2]), out_scale, in_scale),
    ]
    assert_as_defined(nk.gather_scale(**arguments(given, device), backend=backend), given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_of_any_floating_type_and_device(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Scales are rounded to the type that is computed in; maps and scales may lie on the tensors' device."""
    w = random_weights((4, 3, 2), dtype, 0)
    g = torch.tensor([0, 1, 2, 3, 1], device=device)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for scale_dtype in DTYPES:
        c = torch.tensor([1 / 3, 0.7, 1.1, -2.3, 0.1], dtype=scale_dtype, device=device)
        got = nk.gather_scale([w.to(device)], [g], None, out_scales=[c], backend=backend)[0]
        product = w[g.cpu()].to(compute) * c.cpu().to(compute).view(-1, 1, 1)
        assert_same_bits(got, product.to(dtype), str(scale_dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_3d", "transposed"])
def test_allocates_in_the_teachers_memory_format(backend: str, device: torch.device, layout: str) -> None:
    given = teachers(SMALL, torch.float32, layout=layout)
    call = arguments(given, device, layout=layout)
    formats = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}
    for src, u in zip(call["srcs"], nk.gather_scale(**call, backend=backend), strict=True):
        # One input channel looks the same in both formats, so nothing is known of what was meant.
        wanted = formats.get(layout, torch.contiguous_format) if src.shape[1:2] != (1,) else torch.contiguous_format
        assert u.stride() == torch.empty(u.shape, memory_format=wanted).stride()


@not_finite
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_are_copied_where_nothing_is_computed(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """NaNs with their payloads, infinities, denormals, the sign of zero."""
    w = every_half(dtype).view(16, -1) if dtype in HALVES else from_bits(FORMATS[dtype].awkward(), dtype).view(-1, 2)
    g_out, g_in = widening_map(w.shape[0], w.shape[0] + 3, 0), widening_map(w.shape[1], w.shape[1] + 2, 1)
    got = nk.gather_scale([place(w, "contiguous", device)], [g_out], [g_in], backend=backend)[0]
    assert_same_bits(got, w[g_out][:, g_in])


@not_finite
@pytest.mark.parametrize("noise", ["replicas", "cancelling"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite(backend: str, device: torch.device, dtype: torch.dtype, noise: str) -> None:
    """A NaN passes with its bits, an infinity times zero is one fixed NaN, and noise leaves both alone."""
    f = FORMATS[dtype]
    row = from_bits([*f.nans(), f.infinity, f.infinity | f.sign], dtype)
    scales = torch.tensor([0.5, -1.0, 0.0])
    got = nk.gather_scale(
        [place(row.view(1, -1, 1), "contiguous", device)],
        [torch.tensor([0, 0, 0])],
        [torch.cat([torch.arange(len(row))] * 2)],
        out_scales=[scales],
        noise_std=0.1,
        noise=noise,
        backend=backend,
    )[0]
    infinities = [[f.infinity, f.infinity | f.sign], [f.infinity | f.sign, f.infinity], [f.quiet_nan] * 2]
    expected = torch.stack([from_bits([*f.nans(), *inf] * 2, dtype).view(-1, 1) for inf in infinities])
    assert_same_bits(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_denormals_and_the_sign_of_zero(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    f = FORMATS[dtype]
    tiny, normal = 1, 1 << f.mantissa  # the smallest denormal, the smallest normal number
    w = from_bits([0, f.sign, 2 * tiny, 6 * tiny, 3 * tiny, normal, normal | f.sign], dtype)
    half = from_bits([0, f.sign, tiny, 3 * tiny, 2 * tiny, normal >> 1, normal >> 1 | f.sign], dtype)
    negated = from_bits([f.sign, 0, *(p | f.sign for p in (2, 6, 3, normal)), normal], dtype)
    identity = torch.arange(len(w))
    for scale, expected in ((0.5, half), (-1.0, negated), (1.0, w)):
        got = nk.gather_scale(
            [w.to(device)], [identity], None, out_scales=[torch.full((len(w),), scale)], backend=backend
        )
        assert_same_bits(got[0], expected, f"times {scale}")


def round_to_half(x: np.ndarray, dtype: torch.dtype) -> Tensor:
    """float32 to a 16-bit type, to nearest even, not by torch."""
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(x.astype(np.float16))
    bits = x.view(np.uint32).astype(np.int64)
    low, kept = bits & 0xFFFF, bits >> 16
    kept += (low > 0x8000) | ((low == 0x8000) & (kept & 1 == 1))
    return torch.from_numpy(kept.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


@overflows
@not_finite  # an infinity that comes out is multiplied by the zero of an absent scale, and discarded
@pytest.mark.parametrize("scale", [1.5, 1 / 3, 2.0**-9, 3.0e4])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_round_to_nearest_even(backend: str, device: torch.device, dtype: torch.dtype, scale: float) -> None:
    """Every finite half, times a float32: into denormals, into infinity, and through ties."""
    w = every_half(dtype).flatten()
    w = w[w.isfinite()]
    c = np.float32(scale)
    with np.errstate(over="ignore"):
        product = w.float().numpy() * c
    # Once as one tensor of many, with the scale on the input axis.
    got = nk.gather_scale(
        [w.to(device).view(-1, 1)], None, None, in_scales=[torch.tensor([float(c)])], backend=backend
    )[0]
    assert_same_bits(got.view(-1), round_to_half(product, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_dyadic_split_sums_to_the_teacher_bit_for_bit(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    w = random_weights((5, 4, 3, 3), dtype, 0)
    g = torch.tensor([0, 1, 2, 3, 1, 2, 1, 2, 2])  # one, three, four and one replicas
    u = nk.gather_scale([w.to(device)], None, [g], in_scales=[dyadic_split(g)], backend=backend)[0].cpu()
    # Added up in the type itself, smallest first: each partial sum is a multiple of a power of two of the whole.
    total = torch.zeros_like(w)
    for i in reversed(range(len(g))):
        total[:, g[i]] += u[:, i]
    assert_same_bits(total, w)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 3, 0, 3), (0, 0, 1, 1)])
def test_empty_tensors_beside_others(backend: str, device: torch.device, shape: tuple[int, ...]) -> None:
    empty, full = torch.empty(shape, device=device), torch.ones(2, 3, device=device)
    got = nk.gather_scale(
        [empty, full, empty], None, None, out_scales=[None, torch.tensor([1.0, 2.0]), None], noise_std=0.1,
        noise="cancelling", backend=backend,
    )  # fmt: skip
    assert [tuple(u.shape) for u in got] == [shape, (2, 3), shape]
    assert got[1].tolist() == [[1.0] * 3, [2.0] * 3]


def test_no_tensors_at_all(backend: str) -> None:
    assert nk.gather_scale([], [], [], backend=backend) == []


def test_the_result_is_the_callers_own(backend: str, device: torch.device) -> None:
    """Even where nothing changes: writing to the student must not reach the teacher, nor one student the other."""
    w = torch.zeros(3, 3, device=device)
    first, second = nk.gather_scale([w, w], None, None, backend=backend)
    first.fill_(1)
    assert w.eq(0).all()
    assert second.eq(0).all()


def test_a_source_may_repeat_its_elements(backend: str, device: torch.device) -> None:
    """An expanded tensor overlaps itself, which does no harm in reading."""
    w = torch.arange(4.0, device=device).view(1, 4, 1, 1).expand(3, 4, 2, 2)
    assert_same_bits(nk.gather_scale([w], [torch.tensor([0, 1, 2, 0])], None, backend=backend)[0], w[[0, 1, 2, 0]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_source_at_an_odd_address(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """As a view of a file's bytes may lie."""
    if device.type != "cpu":
        pytest.skip("torch makes such a view of host memory only")
    w = random_weights((3, 4), dtype, 0)
    raw = bytearray(b"\0") + bytearray(w.view(torch.uint8).numpy().tobytes())
    odd = torch.frombuffer(raw, dtype=dtype, offset=1).view(3, 4)
    assert odd.data_ptr() % dtype.itemsize
    got = nk.gather_scale([odd], [torch.tensor([0, 1, 2, 1])], None, backend=backend)[0]
    assert_same_bits(got, w[[0, 1, 2, 1]])


def test_students_are_not_attached_to_autograd(backend: str, device: torch.device) -> None:
    w = torch.nn.Parameter(torch.ones(2, 2, device=device))
    g = torch.tensor([0, 1, 0])
    u = nk.gather_scale([w], [g], None, out_scales=[torch.ones(3, requires_grad=True)], backend=backend)[0]
    assert not u.requires_grad
    assert u.grad_fn is None


def test_autograd_hears_of_what_out_overwrites(backend: str, device: torch.device) -> None:
    x, saved = torch.ones(2, 2, device=device, requires_grad=True), torch.ones(2, 2, device=device)
    loss = (x * saved).sum()
    nk.gather_scale([torch.zeros(2, 2, device=device)], None, None, out=[saved], backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_inference_mode(backend: str, device: torch.device) -> None:
    with torch.inference_mode():
        out = torch.zeros(2, device=device)
        nk.gather_scale([torch.ones(2, device=device)], None, None, out=[out], backend=backend)
        assert out.tolist() == [1.0, 1.0]


@pytest.mark.big
def test_more_elements_than_32_bits_count(backend: str, device: torch.device) -> None:
    """Offsets, tiles and the noise's counter beyond 2**32 elements; one row is as good as another."""
    if backend in {"triton", "reference"} and device.type == "cpu":
        pytest.skip("takes too long under Triton's interpreter, and too much memory in plain torch")
    rows, width = 65_600, 65_537
    w = random_weights((1, width), torch.bfloat16, 0).to(device)
    g = torch.zeros(rows, dtype=torch.int64)
    c = torch.ones(rows)
    c[-1], c[rows // 2] = 2.0, 0.5
    u = nk.gather_scale([w], [g], None, out_scales=[c], backend=backend)[0]
    assert u.numel() > 2**32
    for row, scale in ((0, 1.0), (1, 1.0), (rows // 2, 0.5), (rows - 2, 1.0), (rows - 1, 2.0)):
        assert_same_bits(u[row], w[0] * scale, f"row {row}")


def test_every_layout_has_its_cases() -> None:
    """A layout without cases would pass for nothing."""
    for name, layout in LAYOUTS.items():
        assert any(len(case.shape) in layout.dims for case in SMALL), name
