"""gather_scale's noise: what it is, what it leaves alone, and what it depends on."""

import concurrent.futures
import math
from typing import Any

import numpy as np
import pytest
import torch
from gather_scale_cases import FEW, LARGE, Case, arguments, teachers
from kernel_cases import (
    DTYPES,
    assert_same_bits,
    dyadic_split,
    embed,
    place,
    random_weights,
    shuffled_map,
    uniform_split,
    widening_map,
)
from torch import Tensor

import n2n_kernels as nk
from n2n_kernels.rng import HALF_STD, NOISE_STD

CPU = torch.device("cpu")
NOISES = ["replicas", "cancelling"]


def philox_word(seed: int, tensor_id: int, stream: int, element: int) -> int:
    """The 32 random bits of an element, by Philox4x32-7 in plain integers."""
    mask = 0xFFFFFFFF
    c = [(element >> 2) & mask, element >> 34, tensor_id, stream]
    k = [seed & mask, seed >> 32]
    for _ in range(7):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & mask, (p0 >> 32) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c[element % 4]


def half_sample(word: int, half: int) -> int:
    """The sum of two of the word's bytes by their weights, centred, and one more in the low half."""
    even, odd = word.to_bytes(4, "little")[2 * half : 2 * half + 2]
    return 254 * even + 252 * odd - 64515 + (half == 0)


def sample(seed: int, tensor_id: int, stream: int, element: int) -> int:
    """Of both halves of the element's word together."""
    word = philox_word(seed, tensor_id, stream, element)
    return half_sample(word, 0) + half_sample(word, 1)


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between numbers of `dtype` around `x` (float64)."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(x.abs().clamp(min=info.smallest_normal))[1].double() - 1
    return info.eps * torch.exp2(exponent)


# What it is


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 1, 2**63 - 1])
def test_noise_on_replicas_is_this_noise(backend: str, device: torch.device, seed: int) -> None:
    """Element by element, against integers that Python computes."""
    std, ids = 0.25, [3, 2**32 - 1]
    w = torch.zeros(2, 3, 2, dtype=torch.float64, device=device)
    g = torch.tensor([0, 1, 1, 0])
    got = nk.gather_scale(
        [w, w], [g, g], None, noise_std=std, noise="replicas", seed=seed, tensor_ids=ids, backend=backend
    )
    for u, tensor_id in zip(got, ids, strict=True):
        z = [float(sample(seed, tensor_id, 1, e)) if e >= 12 else 0.0 for e in range(24)]
        assert_same_bits(u.flatten(), torch.tensor(z, dtype=torch.float64) * (std / NOISE_STD))


def test_cancelling_noise_is_this_noise(backend: str, device: torch.device) -> None:
    std = 0.5
    w = torch.zeros(2, 2, 1, dtype=torch.float64, device=device)
    g = torch.tensor([0, 1, 0, 0])  # replicas of unit 0: columns 0, 2, 3
    u = nk.gather_scale([w], None, [g], noise_std=std, noise="cancelling", seed=9, backend=backend)[0].cpu()
    for o in range(2):
        # Unit 0 of the teacher's row of two: its first two replicas share a word, the third has one of the next stream.
        words = [philox_word(9, 0, stream, 2 * o) for stream in (2, 3)]
        z = [half_sample(words[0], 0), half_sample(words[0], 1), half_sample(words[1], 0)]
        first, second = (z[0] - z[1]) * (std / HALF_STD), (z[1] - z[2]) * (std / HALF_STD)
        assert u[o].flatten().tolist() == [first, 0.0, second, -(first + second)]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_has_the_standard_deviation_asked_for(
    backend: str, device: torch.device, dtype: torch.dtype, noise: str
) -> None:
    # Triton's interpreter takes seconds for what the others do in milliseconds, but no longer for long rows.
    rows, columns = (8, 288) if backend == "triton" and device.type == "cpu" else (160, 160)
    std, g = 0.25, torch.arange(rows if noise == "replicas" else columns).repeat(2)
    maps: dict[str, Any] = (
        {"out_maps": [g], "in_maps": None} if noise == "replicas" else {"out_maps": None, "in_maps": [g]}
    )
    w = torch.zeros(rows, columns, dtype=dtype, device=device)
    u = nk.gather_scale([w], **maps, noise_std=std, noise=noise, backend=backend)[0].cpu().double()
    z = u[rows:] if noise == "replicas" else u[:, :columns] / math.sqrt(2)  # the difference of two
    # Both sample moments lie within five of their own standard deviations (excess kurtosis of the noise: -0.3).
    assert abs(z.mean()) < 5 * std / math.sqrt(z.numel())
    assert abs(z.std() / std - 1) < 5 * math.sqrt((2 - 0.3) / (4 * z.numel())) + torch.finfo(dtype).eps
    if noise == "replicas":
        assert z.abs().max() < 4 * std  # a sum of four uniform bytes has no tails
        kurtosis = ((z / std) ** 4).mean()
        assert abs(kurtosis - 2.7) < 5 * math.sqrt(24 / z.numel())


# What it leaves alone


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_on_replicas_leaves_first_copies_alone(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    w = random_weights((4, 3, 3, 3), dtype, 0)
    for g in (widening_map(4, 9, 1), shuffled_map(4, 9, 2)):
        u = nk.gather_scale([w.to(device)], [g], None, noise_std=0.2, noise="replicas", backend=backend)[0].cpu()
        seen = set()
        for o, unit in enumerate(g.tolist()):
            if unit in seen:
                assert (u[o] != w[unit]).float().mean() > 0.9, f"row {o} has no noise"
            else:
                assert_same_bits(u[o], w[unit], f"row {o}, the first copy of unit {unit}")
            seen.add(unit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_is_only_where_the_map_repeats(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """No map on the noise's axis, or one without replicas: no noise."""
    w = random_weights((3, 4, 2), dtype, 0).to(device)
    order_out, order_in = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 2, 0])
    for noise in NOISES:
        options: dict[str, Any] = {"noise_std": 1.0, "noise": noise, "backend": backend}
        assert_same_bits(nk.gather_scale([w], None, None, **options)[0], w)
        assert_same_bits(nk.gather_scale([w], [order_out], [order_in], **options)[0], w[order_out][:, order_in])
    # Replicas on the other axis only.
    rows, columns = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 3, 1])
    assert_same_bits(
        nk.gather_scale([w], None, [columns], noise_std=1.0, noise="replicas", backend=backend)[0], w[:, columns]
    )
    assert_same_bits(nk.gather_scale([w], [rows], None, noise_std=1.0, noise="cancelling", backend=backend)[0], w[rows])


@pytest.mark.parametrize("noise", NOISES)
def test_each_tensor_has_its_own_standard_deviation(backend: str, device: torch.device, noise: str) -> None:
    w = random_weights((3, 3), torch.float32, 0).to(device)
    g = torch.tensor([0, 1, 2, 0, 1])
    call = ([w, w, w], [g] * 3, [g] * 3)
    got = nk.gather_scale(*call, noise_std=[0.0, 0.1, 0.2], noise=noise, tensor_ids=[7, 7, 7], backend=backend)
    plain = w[g.to(device)][:, g.to(device)]
    assert_same_bits(got[0], plain)
    small, large = (u - plain for u in got[1:])
    assert small.any()
    torch.testing.assert_close(large, 2 * small, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_too_small_to_count(backend: str, device: torch.device, dtype: torch.dtype, noise: str) -> None:
    """Where the noise is lost in rounding, or its factor itself rounds to zero, signs of zeros agree too."""
    w = torch.tensor([[0.0, -0.0, 1.0, -1.0], [-2.0, 3.0, -0.0, 0.0]], dtype=dtype)
    g, c = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0.0, 0.5, -0.5, 0.0])
    call = {"out_maps": [g], "in_maps": [torch.arange(4).repeat(2)], "in_scales": [c.repeat(2)], "noise": noise}
    for std in (1e-12, 5e-324):
        expected = nk.gather_scale([w], **call, noise_std=std, backend="reference")[0]
        got = nk.gather_scale([w.to(device)], **call, noise_std=std, backend=backend)[0]
        assert_same_bits(got, expected, f"std {std}")


# Cancelling


@pytest.mark.parametrize("split", [uniform_split, dyadic_split])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cancelling_noise_keeps_the_sum(backend: str, device: torch.device, dtype: torch.dtype, split: Any) -> None:
    """The replicas of an input unit still sum to the teacher's weight, as nearly as the format allows."""
    w = random_weights((2, 5, 5, 5), dtype, 0)
    for g in (widening_map(5, 12, 3), shuffled_map(5, 12, 4)):
        assert 3 <= g.bincount().max() <= 4
        call = {"in_maps": [g], "in_scales": [split(g)], "noise_std": 0.7, "noise": "cancelling", "seed": 11}
        u = nk.gather_scale([w.to(device)], None, **call, backend=backend)[0].cpu().double()
        for unit in range(5):
            columns = (g == unit).nonzero().flatten()
            replicas = u[:, columns]
            error = (replicas.sum(1) - w[:, unit].double()).abs()
            # Half a unit in the last place of the last replica, which is rounded once; and what adding up the others
            # loses in the type that is computed in, at most half an epsilon of the magnitudes each time.
            compute = torch.float64 if dtype == torch.float64 else torch.float32
            magnitude = replicas.abs().sum(1) + w[:, unit].double().abs()
            lost = (len(columns) + 1) * torch.finfo(compute).eps / 2 * magnitude
            assert (error <= ulp(replicas[:, -1], dtype) / 2 + lost).all(), f"unit {unit}"
            if dtype == torch.float64:
                assert (error <= 1e-15 * magnitude).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cancelling_noise_leaves_no_two_replicas_alike(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    w = random_weights((6, 4, 3, 3), dtype, 0)
    g = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1, 0])
    split = uniform_split(g)
    u = nk.gather_scale(
        [w.to(device)], None, [g], in_scales=[split], noise_std=0.3, noise="cancelling", backend=backend
    )[0].cpu()
    for a in range(9):
        for b in range(a):
            if g[a] == g[b]:
                assert (u[:, a] != u[:, b]).float().mean() > 0.9, f"columns {b} and {a}"
    for alone in (2, 3):
        assert_same_bits(u[:, alone], w[:, alone], f"column {alone} has one replica")


def test_cancelling_noise_with_an_output_scale(backend: str, device: torch.device) -> None:
    """Optimizer state is scaled on the output axis: the sum is the scaled weight."""
    w = random_weights((3, 2), torch.float64, 0)
    g_out, g_in = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 0])
    c_out = torch.tensor([1.0, 0.5, 2.0, 0.25])
    u = nk.gather_scale(
        [w.to(device)], [g_out], [g_in], out_scales=[c_out], in_scales=[uniform_split(g_in)], noise_std=0.1,
        noise="cancelling", backend=backend,
    )[0].cpu()  # fmt: skip
    torch.testing.assert_close(u[:, 0] + u[:, 2], w[g_out, 0] * c_out, rtol=1e-15, atol=1e-16)
    assert_same_bits(u[:, 1], w[g_out, 1] * c_out.double())


# Rows of any length


@pytest.mark.parametrize("shape", [(2, 300, 3, 3), (2, 5000, 2, 2)], ids=["long", "longer than a stage"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_of_long_rows(
    backend: str, device: torch.device, noise: str, layout: str, shape: tuple[int, ...]
) -> None:
    """Of rows that are made piece by piece, and of several replicas of the same row or of the same column."""
    if backend == "triton" and device.type == "cpu" and shape[1] > 1000:
        pytest.skip("Triton's interpreter takes twenty seconds")
    w = random_weights(shape, torch.float32, 0)
    g_out, g_in = torch.tensor([0, 1, 0, 0]), shuffled_map(shape[1], 2 * shape[1], 1)
    assert g_in.bincount().max() > 3
    call = {"in_scales": [dyadic_split(g_in)], "noise_std": 0.1, "noise": noise, "seed": 2}
    expected = nk.gather_scale([w], [g_out], [g_in], **call, backend="reference")[0]
    got = nk.gather_scale([place(w, layout, device)], [g_out], [g_in], **call, backend=backend)[0]
    assert_same_bits(got.contiguous(), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning:triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("noise", NOISES)
def test_noise_beside_weights_that_are_not_finite(
    backend: str, device: torch.device, noise: str, dtype: torch.dtype
) -> None:
    """In rows that have them, everything else has the noise that it would have."""
    w = random_weights((3, 12, 3), dtype, 0)
    w[0, 5, 1], w[2, 0, 0], w[2, 11, 2] = math.inf, -math.inf, math.nan
    g_out, g_in = torch.tensor([0, 1, 2, 0, 2]), torch.arange(12).repeat(3)
    call = {"in_scales": [uniform_split(g_in)], "noise_std": 0.1, "noise": noise, "seed": 2}
    expected = nk.gather_scale([w], [g_out], [g_in], **call, backend="reference")[0]
    assert_same_bits(nk.gather_scale([w.to(device)], [g_out], [g_in], **call, backend=backend)[0], expected)


# What it depends on


def noisy(backend: str, device: torch.device, noise: str, **options: Any) -> Tensor:
    """A student of which every element has noise."""
    w = torch.zeros(1, 1, 5, device=device)
    g = torch.zeros(4, dtype=torch.int64)
    maps = ([g], None) if noise == "replicas" else (None, [g])
    u = nk.gather_scale([w], *maps, noise_std=0.1, noise=noise, backend=backend, **options)[0].cpu()
    return u[1:] if noise == "replicas" else u


@pytest.mark.parametrize("noise", NOISES)
def test_noise_depends_on_the_whole_seed(backend: str, device: torch.device, noise: str) -> None:
    base = noisy(backend, device, noise, seed=1)
    assert_same_bits(noisy(backend, device, noise, seed=1), base)
    for seed in (0, 3, 1 + 2**31, 1 + 2**32, 1 + 2**62):
        assert (noisy(backend, device, noise, seed=seed) != base).all(), f"seed {seed}"


def test_the_two_kinds_of_noise_are_independent(backend: str, device: torch.device) -> None:
    """Growing one tensor both ways with one seed must not add the same numbers twice."""
    replicas, cancelling = noisy(backend, device, "replicas"), noisy(backend, device, "cancelling")
    assert not set(replicas.flatten().tolist()) & set(cancelling.flatten().tolist())


@pytest.mark.parametrize("noise", NOISES)
def test_noise_depends_on_the_tensor_id_and_not_on_the_batch(backend: str, device: torch.device, noise: str) -> None:
    given = teachers(FEW, torch.float32)
    ids = [100 + i for i in range(len(given))]
    options: dict[str, Any] = {"noise_std": 0.1, "noise": noise, "seed": 3, "backend": backend}
    whole = nk.gather_scale(**arguments(given, device), **options, tensor_ids=ids)
    reversed_ = nk.gather_scale(**arguments(given[::-1], device), **options, tensor_ids=ids[::-1])[::-1]
    alone = nk.gather_scale(**arguments(given[2:], device), **options, tensor_ids=ids[2:])[0]
    for i, (a, b) in enumerate(zip(whole, reversed_, strict=True)):
        assert_same_bits(a, b, f"tensor {i}")
    assert_same_bits(alone, whole[2])
    other = nk.gather_scale(**arguments(given[2:], device), **options, tensor_ids=[4])[0]
    assert not torch.equal(other, alone)


def test_the_default_tensor_id_is_the_position(backend: str, device: torch.device) -> None:
    call = arguments(teachers(FEW, torch.float32), device)
    options: dict[str, Any] = {"noise_std": 0.1, "noise": "replicas", "backend": backend}
    default = nk.gather_scale(**call, **options)
    named = nk.gather_scale(**call, **options, tensor_ids=list(range(len(default))))
    for a, b in zip(default, named, strict=True):
        assert_same_bits(a, b)


def test_numbers_may_be_numpys(backend: str, device: torch.device) -> None:
    expected = noisy(backend, device, "replicas", seed=3, tensor_ids=[4])
    got = noisy(backend, device, "replicas", seed=np.int64(3), tensor_ids=np.array([4], dtype=np.uint32))
    assert_same_bits(got, expected)


@pytest.mark.parametrize("noise", NOISES)
def test_noise_does_not_depend_on_threads(noise: str) -> None:
    """With enough tiles that every thread gets some."""
    given = teachers([*LARGE, Case((150, 160, 3, 3), 300, 200)], torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(nk.gather_scale(**arguments(given, CPU), noise_std=0.1, noise=noise, backend=None))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


def test_calls_from_several_threads_at_once(backend: str, device: torch.device) -> None:
    if backend == "triton" and device.type == "cpu":
        pytest.skip("Triton's interpreter patches its own module while it runs, so it serves one thread at a time")
    alone = [noisy(backend, device, "cancelling", seed=seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: noisy(backend, device, "cancelling", seed=seed), range(8)))
    for a, b in zip(alone, together, strict=True):
        assert_same_bits(b, a)


def test_the_current_stream_is_used(backend: str, device: torch.device) -> None:
    """On CUDA, work is ordered after what the current stream is still doing."""
    if device.type != "cuda":
        pytest.skip("streams are CUDA's")
    w = torch.zeros(1000, 1000, device=device)
    g = torch.arange(1000).repeat(2)
    out = embed((2000, 1000), torch.float32, "contiguous", device).tensor
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds
        w.fill_(1)
        nk.gather_scale([w], [g], None, out=[out], backend=backend)
    stream.synchronize()
    assert out.eq(1).all()
