"""Counter-based noise, the plain-torch definition that every backend reproduces bit for bit (`csrc/philox.h`)."""

import math
from typing import TypeVar

import torch
from torch import Tensor

#: Rounds of Philox4x32; seven pass the whole BigCrush battery (Salmon et al., SC 2011, table 2).
ROUNDS = 7

#: Of a word's bytes 0 and 2, and of 1 and 3, in the sums that are its noise.
WEIGHTS = (254, 252)

#: Standard deviation of the integers that `half_noise` returns, which are sums of two uniform bytes by their weights.
HALF_STD = math.sqrt(sum(weight**2 for weight in WEIGHTS) * (256.0**2 - 1.0) / 12.0)

#: The same for `noise`, with four bytes.
NOISE_STD = math.sqrt(2.0) * HALF_STD

#: What an integer is divided by.
_UNIT = {"replicas": NOISE_STD, "cancelling": HALF_STD}

#: A bound of what is then added to a weight: of an integer, or of the difference of two halves.
LARGEST = 2**17

_MASK = 0xFFFFFFFF

Number = TypeVar("Number", float, Tensor)


def sigma(noise_std: Number, noise: str) -> Number:
    """The factor that turns the integers of a kind of noise into noise of standard deviation `noise_std`."""
    return noise_std / _UNIT[noise]


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product of a 32-bit constant and a tensor of 32-bit values held in int64.

    In halves of 16 bits, because int64 cannot hold the whole product.
    """
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (middle >> 16), ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: list[Tensor], key: tuple[int, int], rounds: int = ROUNDS) -> list[Tensor]:
    """Philox4x32 of four counter words (int64 tensors of 32-bit values) and two key words: four such words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def words(index: Tensor, *, seed: int, tensor_id: int, stream: int) -> Tensor:
    """The 32 random bits (in int64) of the indices `index` (int64): they depend on these four alone."""
    block = index >> 2
    four = philox4x32(
        [block & _MASK, block >> 32, torch.full_like(index, tensor_id), torch.full_like(index, stream)],
        (seed & _MASK, seed >> 32),
    )
    return torch.stack(four).gather(0, (index & 3).unsqueeze(0)).squeeze(0)


def half_noise(word: Tensor, half: Tensor) -> Tensor:
    """Two centred integers (int64) of each word, for noise that is used in differences: of the low half where `half` is
    0, and of the high half where it is 1. Standard deviation `HALF_STD`; the difference of any two is exact in float32.

    The sum of two bytes, whose weights differ a little: of equal ones, samples would tie often. One more in the low
    half makes its sum odd where the high half's is even, so that the two never tie."""
    bits = torch.where(half == 0, word, word >> 16)
    total = WEIGHTS[0] * (bits & 0xFF) + WEIGHTS[1] * (bits >> 8 & 0xFF)
    return total + (half == 0) - 255 * sum(WEIGHTS) // 2


def noise(word: Tensor) -> Tensor:
    """Centred odd integers (int64), nearly normal with standard deviation `NOISE_STD`, exact in float32.

    The sum of both halves' noise."""
    low, high = (half_noise(word, torch.full_like(word, half)) for half in (0, 1))
    return low + high
