"""The noise's generator against published answers, and in each of its implementations."""

import random

import pytest
import torch

from n2n_kernels import native, rng

#: Philox4x32 (Random123's known answers for 10 rounds), as counter, key, rounds -> words.
KNOWN = [
    ([0, 0, 0, 0], [0, 0], 10, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0, 0, 0, 0], [0, 0], 7, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, 10, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0], 10,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]  # fmt: skip


def sample(index: torch.Tensor, *, seed: int, tensor_id: int, stream: int) -> torch.Tensor:
    return rng.noise(rng.words(index, seed=seed, tensor_id=tensor_id, stream=stream))


def in_python(counter: list[int], key: list[int], rounds: int) -> list[int]:
    words = rng.philox4x32([torch.tensor([c]) for c in counter], (key[0], key[1]), rounds)
    return [int(word) for word in words]


@pytest.mark.parametrize(("counter", "key", "rounds", "words"), KNOWN)
def test_known_answers(counter: list[int], key: list[int], rounds: int, words: list[int]) -> None:
    assert in_python(counter, key, rounds) == words
    if native.missing is None:
        assert native.module().philox(rounds, counter, key) == words


@pytest.mark.parametrize("rounds", [7, 10])
def test_python_and_native_agree_on_random_counters(rounds: int) -> None:
    if native.missing is not None:
        pytest.skip(native.missing)
    draw = random.Random(0)
    for _ in range(200):
        counter, key = ([draw.getrandbits(32) for _ in range(n)] for n in (4, 2))
        assert native.module().philox(rounds, counter, key) == in_python(counter, key, rounds)


def test_native_refuses_other_rounds() -> None:
    if native.missing is not None:
        pytest.skip(native.missing)
    with pytest.raises(ValueError, match=r"rounds \(=8\) must be 7 or 10"):
        native.module().philox(8, [0] * 4, [0] * 2)


def noise(n: int = 1 << 16, *, first: int = 0, seed: int = 0, tensor_id: int = 0, stream: int = 1) -> torch.Tensor:
    return sample(torch.arange(first, first + n), seed=seed, tensor_id=tensor_id, stream=stream)


def test_moments_of_the_noise() -> None:
    z = noise().double()
    n = z.numel()
    assert abs(z.mean()) < 5 * rng.NOISE_STD / n**0.5
    assert abs(z.std() / rng.NOISE_STD - 1) < 5 * (1.7 / (4 * n)) ** 0.5  # excess kurtosis -0.3
    assert abs(((z / rng.NOISE_STD) ** 3).mean()) < 5 * (15 / n) ** 0.5
    assert abs(((z / rng.NOISE_STD) ** 4).mean() - 2.7) < 0.05
    # Neighbours, of the same block of four and of the next, are not correlated.
    for lag in (1, 2, 3, 4, 5):
        assert abs((z[lag:] * z[:-lag]).mean()) < 5 * rng.NOISE_STD**2 / n**0.5


def test_the_noise_is_odd_and_bounded() -> None:
    """So that no sample is zero, and the difference of any two is exact in float32."""
    z = noise()
    assert (z % 2 == 1).all()
    extremes = rng.noise(torch.tensor([0, 2**32 - 1]))
    assert extremes.tolist() == [-129029, 129031]
    assert z.abs().max() < extremes.abs().max() < rng.LARGEST


def test_samples_rarely_tie() -> None:
    """Replicas whose noise ties would stay alike. Of bytes of equal weights, one pair in 500 would."""
    z = noise()
    assert (z[::2] == z[1::2]).float().mean() < 1e-4


def test_every_bit_of_the_key_matters() -> None:
    base = noise(64, seed=0)
    for bit in range(63):
        assert (noise(64, seed=1 << bit) != base).float().mean() > 0.9, f"bit {bit} of the seed"
    for bit in range(32):
        assert (noise(64, tensor_id=1 << bit) != base).float().mean() > 0.9, f"bit {bit} of the tensor id"
    assert (noise(64, stream=2) != base).float().mean() > 0.9


def test_elements_beyond_32_bits() -> None:
    """The counter's second word: without it, elements 2**34 apart would have the same noise."""
    base = noise(64)
    for shift in (31, 32, 33, 34, 40):
        assert (noise(64, first=1 << shift) != base).float().mean() > 0.9, f"element 2**{shift}"


def test_halves_of_a_word_are_two_samples() -> None:
    word = rng.words(torch.arange(1 << 16), seed=4, tensor_id=0, stream=2)
    low, high = (rng.half_noise(word, torch.full_like(word, half)).double() for half in (0, 1))
    for z in (low, high):
        assert z.abs().max() <= 255 * 253 + 1
        assert abs(z.mean()) < 5 * rng.HALF_STD / 2**8
        assert abs(z.std() / rng.HALF_STD - 1) < 0.02
    assert abs((low * high).mean()) < 5 * rng.HALF_STD**2 / 2**8  # uncorrelated
    assert (low != high).all()  # of two replicas, one is never the other
    most = torch.tensor([0x0000FFFF, 0xFFFF0000])  # the largest differences
    low, high = (rng.half_noise(most, torch.full_like(most, half)) for half in (0, 1))
    assert (low - high).tolist() == [129031, -129029]
    assert rng.LARGEST > 129031
