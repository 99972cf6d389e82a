"""Triton pieces that several kernels share: the codes, rounding and noise of `csrc/common.h` and `csrc/philox.h`.

Triton compiles `@triton.jit` functions from their source, so constants are `tl.constexpr`. Storage of 16 bits is
handled as integers throughout: a NaN's bits then survive, and bfloat16 is rounded by the same integer code as in C++.
"""

import triton
import triton.language as tl

from n2n_kernels import rng

F32 = tl.constexpr(0)
F64 = tl.constexpr(1)
BF16 = tl.constexpr(2)
F16 = tl.constexpr(3)

ROUNDS = tl.constexpr(rng.ROUNDS)
EVEN_WEIGHT, ODD_WEIGHT = (tl.constexpr(weight) for weight in rng.WEIGHTS)
NOISE_CENTRE = tl.constexpr(255 * sum(rng.WEIGHTS))


@triton.jit
def pointer(address, CODE: tl.constexpr):
    """To storage bits: int32, int64 or int16."""
    if CODE == F32:
        return address.to(tl.pointer_type(tl.int32))
    elif CODE == F64:
        return address.to(tl.pointer_type(tl.int64))
    else:
        return address.to(tl.pointer_type(tl.int16))


@triton.jit
def load_bits(address, offset, mask, CODE: tl.constexpr):
    """Storage bits at element `offset` of the tensor at `address`. 0 where masked."""
    return tl.load(pointer(address, CODE) + offset, mask=mask, other=0)


@triton.jit
def store_bits(address, offset, bits, mask, CODE: tl.constexpr):
    tl.store(pointer(address, CODE) + offset, bits, mask=mask)


@triton.jit
def load_compute(address, offset, mask, CODE: tl.constexpr):
    """An element of a table of scales: float64 for float64 storage, else float32. 0 where masked."""
    if CODE == F64:
        return tl.load(address.to(tl.pointer_type(tl.float64)) + offset, mask=mask, other=0.0)
    else:
        return tl.load(address.to(tl.pointer_type(tl.float32)) + offset, mask=mask, other=0.0)


@triton.jit
def load_int(address, offset, mask):
    """An element of an int32 table. 0 where masked."""
    return tl.load(address.to(tl.pointer_type(tl.int32)) + offset, mask=mask, other=0)


@triton.jit
def to_compute(bits, CODE: tl.constexpr):
    if CODE == F32:
        return bits.to(tl.float32, bitcast=True)
    elif CODE == F64:
        return bits.to(tl.float64, bitcast=True)
    elif CODE == BF16:
        return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def as_compute(x, CODE: tl.constexpr):
    """Numbers of another type, rounded to the compute type."""
    if CODE == F64:
        return x.to(tl.float64)
    else:
        return x.to(tl.float32)


@triton.jit
def finish(source, w, x, CODE: tl.constexpr):
    """Storage bits of `x`, as `n2n::finish`: a NaN of the source (value `w`) stays, a NaN made here is one pattern."""
    if CODE == F32:
        bits = x.to(tl.int32, bitcast=True)
        nan = 0x7FC00000
    elif CODE == F64:
        bits = x.to(tl.int64, bitcast=True)
        nan = 0x7FF8000000000000
    elif CODE == BF16:
        u = x.to(tl.uint32, bitcast=True)
        bits = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).to(tl.uint16).to(tl.int16, bitcast=True)
        nan = 0x7FC0
    else:
        bits = x.to(tl.float16).to(tl.int16, bitcast=True)
        nan = 0x7E00
    made = tl.where(x == x, bits, tl.full(bits.shape, nan, bits.dtype))
    return tl.where(w == w, made, source)


@triton.jit
def word_at(index, tensor_id, stream, k0, k1):
    """`n2n::word_at`: the 32 random bits of an index (int64)."""
    block = index >> 2
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    zero = c0 * 0
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, zero + tensor_id, zero + stream.to(tl.uint32), zero + k0, zero + k1, ROUNDS)
    which = (index & 3).to(tl.int32)
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit
def words_from(first, tensor_id, stream, k0, k1, COUNT: tl.constexpr):
    """uint32 [COUNT]: words of the indices from `first` (int64, a multiple of 4) on, four from one computation."""
    block = (first >> 2) + tl.arange(0, COUNT // 4)
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    zero = c0 * 0
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, zero + tensor_id, zero + stream.to(tl.uint32), zero + k0, zero + k1, ROUNDS)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (COUNT,))


@triton.jit
def half_noise(w, half):
    """`n2n::half_noise_from_word`: a centred int32 of the low half of each word where `half` is 0, else of the high."""
    bits = tl.where(half == 0, w, w >> 16)
    total = EVEN_WEIGHT * (bits & 0xFF) + ODD_WEIGHT * (bits >> 8 & 0xFF)
    return total.to(tl.int32) + tl.where(half == 0, 1, 0) - NOISE_CENTRE // 2


@triton.jit
def noise_of_word(w):
    """`n2n::noise_from_word`: a centred int32."""
    total = EVEN_WEIGHT * ((w & 0xFF) + (w >> 16 & 0xFF)) + ODD_WEIGHT * ((w >> 8 & 0xFF) + (w >> 24))
    return total.to(tl.int32) + 1 - NOISE_CENTRE
