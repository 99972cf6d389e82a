"""channel_moments and tensor_moments in Triton, in the order of summation that `csrc/channel_moments.h` defines.

The kernels work on tiles `[a, b, V]` of V neighbours each, which are one 16-byte load where memory permits: V elements
of a channel, or the same element of V channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from n2n_kernels import dtypes, native
from n2n_kernels.ops.channel_moments.channels import Channels
from n2n_kernels.ops.channel_moments.order import FOLD_LANES, LANES
from n2n_kernels.ops.channel_moments.tasks import Column, chunks_per_block, pack
from n2n_kernels.table import VECTOR_BYTES
from n2n_kernels.triton_common import pointer, to_compute

SRC, ELEMENTS = tl.constexpr(int(Column.SRC)), tl.constexpr(int(Column.ELEMENTS))
CHUNK, CHUNKS = tl.constexpr(int(Column.CHUNK)), tl.constexpr(int(Column.CHUNKS))
FIRST_PARTIAL, FIRST_BLOCK = tl.constexpr(int(Column.FIRST_PARTIAL)), tl.constexpr(int(Column.FIRST_BLOCK))
WORDS = tl.constexpr(len(Column))
LANES_, FOLD_LANES_, ALIGNED = tl.constexpr(LANES), tl.constexpr(FOLD_LANES), tl.constexpr(VECTOR_BYTES)


@triton.jit
def load_double(pointers, mask, CODE: tl.constexpr):
    return to_compute(tl.load(pointers, mask=mask, other=0), CODE).to(tl.float64)


@triton.jit
def pivot_of(first):
    """The first element, or zero where that is not finite."""
    return tl.where(first - first == 0, first, 0.0)


@triton.jit
def walk(address, offset, s, pivot, j, end, wrap, step, step_s, S, steps, V: tl.constexpr,
         ALONG_CHANNELS: tl.constexpr, WIDE: tl.constexpr, CODE: tl.constexpr):  # fmt: skip
    """The sums `[a, b, V]` of d and of d*d over what begins at `offset` and at element `j` of its channel, `[a, b]`;
    `WIDE`: in steps of whole vectors."""
    src = pointer(address, CODE)
    v = tl.arange(0, V)[None, None, :]
    at_once: tl.constexpr = 1 if ALONG_CHANNELS else V
    d_sum = tl.zeros([offset.shape[0], offset.shape[1], V], tl.float64)
    dd_sum = tl.zeros([offset.shape[0], offset.shape[1], V], tl.float64)
    unroll: tl.constexpr = 4 if WIDE else 1
    for _ in tl.range(0, steps, loop_unroll_factor=unroll):
        # The mask is of vectors, not of elements, which would be loaded one by one.
        inside = (j + at_once <= end)[:, :, None]
        vectors = src + offset[:, :, None]
        if WIDE:
            vectors = tl.multiple_of(vectors, [ALIGNED, ALIGNED, ALIGNED])
        x = load_double(vectors + v, inside, CODE)
        d = tl.where(inside, x - pivot, 0.0)
        d_sum += d
        dd_sum += d * d
        j += LANES_
        s += step_s
        wrapped = s >= S
        s = tl.where(wrapped, s - S, s)
        offset += tl.where(wrapped, step + wrap, step)
    return d_sum, dd_sum


@triton.jit
def fold(x, LENGTH: tl.constexpr, REST: tl.constexpr):
    """`[LENGTH, REST]` added up along LENGTH, neighbours first; a sum of two is the same in either order."""
    if LENGTH > 1:
        x = fold(tl.sum(tl.reshape(x, [LENGTH // 2, 2, REST]), 1), LENGTH // 2, REST)
    else:
        x = tl.reshape(x, [REST])
    return x


@triton.jit
def channel_moments_kernel(
    x, pivots, partials, C, n, S, stride_n, stride_c, stride_s, step, wrap, step_s, chunk, chunks,
    CODE: tl.constexpr, V: tl.constexpr, ALONG_CHANNELS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A unit is V channels if ALONG_CHANNELS, else one, over one chunk."""
    unit = tl.program_id(0).to(tl.int64) * UNITS + tl.arange(0, UNITS)
    if ALONG_CHANNELS:
        across = C // V
        chunk_index = unit // across
        channel = (unit - chunk_index * across) * V
        exists = chunk_index < chunks
        first_j = tl.arange(0, LANES_)[:, None] + (chunk_index * chunk)[None, :]
        end = tl.where(exists, tl.minimum((chunk_index + 1) * chunk, n), 0)[None, :]
        base = (channel * stride_c)[None, :]
        v = tl.arange(0, V)[None, None, :]
    else:
        channel = unit // chunks
        chunk_index = unit - channel * chunks
        exists = channel < C
        first_j = (tl.arange(0, LANES_ // V) * V)[None, :] + (chunk_index * chunk)[:, None]
        end = tl.where(exists, tl.minimum((chunk_index + 1) * chunk, n), 0)[:, None]
        base = (channel * stride_c)[:, None]
        v = tl.zeros([1, 1, 1], tl.int32)
    address = x.to(tl.int64)
    src = pointer(address, CODE)
    pivot = pivot_of(load_double(src + base[:, :, None] + v, (end > 0)[:, :, None], CODE))
    row = first_j // S
    s = first_j - row * S
    offset = base + row * stride_n + s * stride_s
    steps = chunk // LANES_
    d, dd = walk(address, offset, s, pivot, first_j, end, wrap, step, step_s, S, steps, V, ALONG_CHANNELS, V > 1, CODE)
    if ALONG_CHANNELS:
        rest: tl.constexpr = UNITS * V
        d, dd = fold(tl.reshape(d, [LANES_, rest]), LANES_, rest), fold(tl.reshape(dd, [LANES_, rest]), LANES_, rest)
        to = tl.reshape(channel[:, None] + tl.arange(0, V)[None, :], [rest])
        at = tl.reshape(chunk_index[:, None] + tl.zeros([1, V], tl.int64), [rest])
        there = at < chunks
    else:
        d = fold(tl.trans(tl.reshape(d, [UNITS, LANES_])), LANES_, UNITS)
        dd = fold(tl.trans(tl.reshape(dd, [UNITS, LANES_])), LANES_, UNITS)
        to, at, there = channel, chunk_index, exists
    tl.store(partials + 2 * (to * chunks + at), d, mask=there)
    tl.store(partials + 2 * (to * chunks + at) + 1, dd, mask=there)
    first = load_double(src + to * stride_c, there & (at == 0), CODE)
    tl.store(pivots + to, pivot_of(first), mask=there & (at == 0))


@triton.jit
def tensor_moments_kernel(
    tasks, block_task, pivots, partials, CODE: tl.constexpr, V: tl.constexpr, UNITS: tl.constexpr
):
    index = tl.load(block_task + tl.program_id(0)).to(tl.int64)
    task = tasks + index * WORDS
    address, n = tl.load(task + SRC), tl.load(task + ELEMENTS)
    chunk, chunks = tl.load(task + CHUNK), tl.load(task + CHUNKS)
    at = (tl.program_id(0) - tl.load(task + FIRST_BLOCK)) * UNITS + tl.arange(0, UNITS).to(tl.int64)
    first_j = (tl.arange(0, LANES_ // V) * V)[None, :] + (at * chunk)[:, None]
    end = tl.where(at < chunks, tl.minimum((at + 1) * chunk, n), 0)[:, None]
    src = pointer(address, CODE)
    one = tl.zeros([1, 1, 1], tl.int32)
    pivot = pivot_of(load_double(src + one, one == 0, CODE))
    steps = chunk // LANES_
    v = tl.arange(0, V)[None, None, :]
    if address % ALIGNED == 0:
        d, dd = walk(address, first_j, first_j, pivot, first_j, end, 0, LANES_, LANES_, n, steps, V, False, True, CODE)
    else:
        d, dd = walk(address, first_j, first_j, pivot, first_j, end, 0, LANES_, LANES_, n, steps, V, False, False, CODE)
    # What is left of a vector in which the tensor ends. It is the last that its lanes add.
    tail = n // V * V
    e = tail + v
    has_tail = (first_j[:, :, None] % LANES_ == tail % LANES_) & (end[:, :, None] == n) & (e < n)
    last = tl.where(has_tail, load_double(src + e + first_j[:, :, None] * 0, has_tail, CODE) - pivot, 0.0)
    d = fold(tl.trans(tl.reshape(d + last, [UNITS, LANES_])), LANES_, UNITS)
    dd = fold(tl.trans(tl.reshape(dd + last * last, [UNITS, LANES_])), LANES_, UNITS)
    to = tl.load(task + FIRST_PARTIAL) + at
    tl.store(partials + 2 * to, d, mask=at < chunks)
    tl.store(partials + 2 * to + 1, dd, mask=at < chunks)
    tl.store(pivots + index + at, pivot_of(load_double(src + at * 0, at == 0, CODE)), mask=at == 0)


@triton.jit
def finish(pivots, partials, c, first, chunks, n, mean, var, FLOAT: tl.constexpr):
    """The moments of channel `c`, whose sums begin at `first`."""
    lane = tl.arange(0, FOLD_LANES_)
    d = tl.zeros([FOLD_LANES_], tl.float64)
    dd = tl.zeros([FOLD_LANES_], tl.float64)
    for at in range(0, chunks, FOLD_LANES_):
        mask = at + lane < chunks
        d += tl.load(partials + 2 * (first + at + lane), mask=mask, other=0.0)
        dd += tl.load(partials + 2 * (first + at + lane) + 1, mask=mask, other=0.0)
    d = fold(tl.reshape(d, [FOLD_LANES_, 1]), FOLD_LANES_, 1)
    dd = fold(tl.reshape(dd, [FOLD_LANES_, 1]), FOLD_LANES_, 1)
    one = tl.arange(0, 1)
    exists = n + one > 0  # nothing has no moments, and no pivot
    count = tl.where(exists, (n + one).to(tl.float64), float("nan"))
    m = tl.load(pivots + c + one, mask=exists, other=0.0) + d / count
    squares = dd - d * d / count
    var_ = tl.where(squares < 0, 0.0, squares) / count
    # Processors differ in the sign and the payload of the NaN that they make.
    if FLOAT:
        m, var_ = m.to(tl.float32), var_.to(tl.float32)
    nan = tl.full([1], float("nan"), m.dtype)
    tl.store(mean + c + one, tl.where(m == m, m, nan))
    tl.store(var + c + one, tl.where(var_ == var_, var_, nan))


@triton.jit
def finish_channels_kernel(pivots, partials, chunks, n, mean, var, FLOAT: tl.constexpr):
    c = tl.program_id(0).to(tl.int64)
    finish(pivots, partials, c, c * chunks, chunks, n, mean, var, FLOAT)


@triton.jit
def finish_tensors_kernel(tasks, pivots, partials, mean, var):
    c = tl.program_id(0).to(tl.int64)
    task = tasks + c * WORDS
    first, chunks, n = tl.load(task + FIRST_PARTIAL), tl.load(task + CHUNKS), tl.load(task + ELEMENTS)
    finish(pivots, partials, c, first, chunks, n, mean, var, False)


def plan(c: Channels) -> tuple[bool, int]:
    """How a tensor is read, as `n2n::plan_of` has it, but for the end of a single run: (along its channels, V)."""
    (n, channels, s), (stride_n, stride_c, stride_s) = c.sizes, c.strides
    v = VECTOR_BYTES // c.x.element_size()
    along_channels = stride_c == 1 and channels > 1 and stride_s != 1
    whole = (channels, stride_n, stride_s) if along_channels else (s, stride_n * (n > 1), stride_c * (channels > 1))
    wide = (along_channels or stride_s == 1) and c.x.data_ptr() % VECTOR_BYTES == 0 and not any(w % v for w in whole)
    return along_channels, v if wide else 1


def run(c: Channels) -> tuple[Tensor, Tensor]:
    """(mean, var), each `[C]` in the compute type."""
    device, (_, channels, s), n, chunk = c.x.device, c.sizes, c.elements, c.chunk
    stride_n, stride_c, stride_s = c.strides
    dtype = dtypes.TABLE[c.x.dtype]
    chunks = -(-n // chunk)
    pivots = torch.empty(channels, dtype=torch.float64, device=device)
    partials = torch.empty(channels, chunks, 2, dtype=torch.float64, device=device)
    mean = torch.empty(channels, dtype=dtype.compute, device=device)
    var = torch.empty_like(mean)
    along_channels, v = plan(c)
    # Eight warps of threads with a vector each.
    units = 256 // LANES if along_channels else chunks_per_block(c.x.dtype) * v * c.x.element_size() // VECTOR_BYTES
    rows, left = divmod(LANES, s)
    with native.launching_on(device):
        channel_moments_kernel[(-(-channels // (v if along_channels else 1) * chunks // units),)](
            c.x, pivots, partials, channels, n, s, stride_n, stride_c, stride_s,
            rows * stride_n + left * stride_s, stride_n - s * stride_s, left, chunk, chunks,
            CODE=dtype.code, V=v, ALONG_CHANNELS=along_channels, UNITS=units, enable_fp_fusion=False, num_warps=8,
        )  # fmt: skip
        finish_channels_kernel[(channels,)](
            pivots, partials, chunks, n, mean, var, FLOAT=dtype.compute == torch.float32, enable_fp_fusion=False
        )
    return mean, var


def run_tensors(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, var) of tensors without gaps, each float64 `[tensors]`."""
    device, count = tensors[0].device, len(tensors)
    table = pack(tensors, device)
    pivots = torch.empty(count, dtype=torch.float64, device=device)
    partials = torch.empty(table.partials, 2, dtype=torch.float64, device=device)
    mean = torch.empty(count, dtype=torch.float64, device=device)
    var = torch.empty_like(mean)
    with native.launching_on(device):
        for dtype, block_task in table.block_tasks.items():
            if block_task.numel():
                tensor_moments_kernel[(block_task.numel(),)](
                    table.tasks, block_task, pivots, partials,
                    CODE=dtypes.TABLE[dtype].code, V=VECTOR_BYTES // dtype.itemsize, UNITS=chunks_per_block(dtype),
                    enable_fp_fusion=False, num_warps=8,
                )  # fmt: skip
        finish_tensors_kernel[(count,)](table.tasks, pivots, partials, mean, var, enable_fp_fusion=False)
    return mean, var
