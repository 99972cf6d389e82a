"""gather_scale in Triton: one launch per dtype over the same tables as the compiled backends.

A program has one tile. Tiles of teacher rows are made a block of columns at a time: where the columns come from is
found once, then each teacher row's values are gathered (through the caches: Triton has no indexed access to shared
memory) and written for every replica of the row. Tiles of elements go element by element.
"""

import triton
import triton.language as tl

from n2n_kernels import dtypes, native
from n2n_kernels.ops.gather_scale.bound import BoundGatherScale
from n2n_kernels.ops.gather_scale.request import NOISES
from n2n_kernels.ops.gather_scale.tasks import Column
from n2n_kernels.table import TILE, VECTOR_BYTES
from n2n_kernels.triton_common import (
    as_compute,
    finish,
    half_noise,
    load_bits,
    load_compute,
    load_int,
    noise_of_word,
    pointer,
    store_bits,
    to_compute,
    word_at,
    words_from,
)

# Columns of the table, as compile-time constants.
SRC, DST = tl.constexpr(int(Column.SRC)), tl.constexpr(int(Column.DST))
OUT_MAP, IN_MAP = tl.constexpr(int(Column.OUT_MAP)), tl.constexpr(int(Column.IN_MAP))
ROW_BEGIN, ROW_LIST = tl.constexpr(int(Column.ROW_BEGIN)), tl.constexpr(int(Column.ROW_LIST))
OUT_SCALE, IN_SCALE = tl.constexpr(int(Column.OUT_SCALE)), tl.constexpr(int(Column.IN_SCALE))
OUT_SEEN, IN_NEXT = tl.constexpr(int(Column.OUT_SEEN)), tl.constexpr(int(Column.IN_NEXT))
IN_ORDER, IN_TOTAL = tl.constexpr(int(Column.IN_ORDER)), tl.constexpr(int(Column.IN_TOTAL))
EXTENT, SRC_O, SRC_I = tl.constexpr(int(Column.O)), tl.constexpr(int(Column.SRC_O)), tl.constexpr(int(Column.SRC_I))
SRC_STRIDE, DST_STRIDE = tl.constexpr(int(Column.SRC_STRIDE_O)), tl.constexpr(int(Column.DST_STRIDE_O))
K_OUTER, ROWS = tl.constexpr(int(Column.K_OUTER)), tl.constexpr(int(Column.ROWS))
TILE_ROWS, TILE_COLUMNS = tl.constexpr(int(Column.TILE_ROWS)), tl.constexpr(int(Column.TILE_COLUMNS))
SIGMA, TENSOR_ID = tl.constexpr(int(Column.SIGMA)), tl.constexpr(int(Column.TENSOR_ID))
WORDS = tl.constexpr(len(Column))

REPLICAS, CANCELLING = tl.constexpr(NOISES["replicas"]), tl.constexpr(NOISES["cancelling"])

#: Elements that a program has in hand at once, by the code of the noise. Each of its 128 threads holds its share in
#: registers, of which noise takes many; without noise a share is a 16-byte store's worth, or two.
BLOCKS = {0: 1024, NOISES["replicas"]: 512, NOISES["cancelling"]: 256}

#: A fused multiply-add would round once where every other backend rounds twice. The bound on registers is more than any
#: of the kernels needs: without it the assembler aims lower, and spills.
OPTIONS = {"enable_fp_fusion": False, "maxnreg": 168}


@triton.jit
def sigma_of(task, NOISE: tl.constexpr, CODE: tl.constexpr):
    """Bits of the factor on the integer noise (float64); a launch with noise has one for every task."""
    if NOISE == 0:  # noqa: SIM108
        bits = tl.full([], 0, tl.int64)
    else:
        bits = tl.load(tl.load(task + SIGMA).to(tl.pointer_type(tl.int64)))
    return bits


@triton.jit
def scaled(task, w, o, rows, c_in, has_in, CODE: tl.constexpr):
    """(w * c_in) * c_out; a factor that is absent is not multiplied at all. `rows` masks `o`, which may be one row."""
    x = tl.where(has_in, w * c_in, w)
    out_scale = tl.load(task + OUT_SCALE)
    has_out = out_scale != 0
    return tl.where(has_out, x * load_compute(out_scale, o, rows & has_out, CODE), x)


@triton.jit
def share(task, w, o, rows, i, mask, CODE: tl.constexpr):
    in_scale = tl.load(task + IN_SCALE)
    has_in = in_scale != 0
    return scaled(task, w, o, rows, load_compute(in_scale, i, mask & has_in, CODE), has_in, CODE)


@triton.jit
def replicas_of(task, i, mask, sigma, NOISE: tl.constexpr):
    """What cancelling noise needs to know of columns `i`: how many of the unit's replicas come before, which is next
    (cyclically; itself, if there is no noise); and for all of them together, whether there is any noise, whether such a
    number is odd, and how many others a last replica has at most."""
    if NOISE == CANCELLING:
        nexts = tl.load(task + IN_NEXT)
        linked = mask & (sigma << 1 != 0) & (nexts != 0)
        order = load_int(tl.load(task + IN_ORDER), i, linked)
        following = tl.where(linked, load_int(nexts, i, linked), i)
        others = tl.where(following < i, order, 0)
        return order, following, tl.max((following != i).to(tl.int32)), tl.max(order & 1), tl.max(others)
    else:
        return i, i, 0, 0, 0


@triton.jit
def perturbed(task, source, w, o, rows, i, z, mask, sigma, CODE: tl.constexpr):
    """Bits of a replica's share plus sigma * z, z the difference of its noise and the next one's."""
    return finish(
        source,
        w,
        share(task, w, o, rows, i, mask, CODE)
        + as_compute(z, CODE) * as_compute(sigma.to(tl.float64, bitcast=True), CODE),
        CODE,
    )


@triton.jit
def plus_noise(x, word, sigma, CODE: tl.constexpr):
    z = as_compute(noise_of_word(word), CODE)
    return x + z * as_compute(sigma.to(tl.float64, bitcast=True), CODE)


@triton.jit
def made(
    task, source, o, rows, i, unit, k, mask, sigma, k0, k1, replicas, in_order, first,
    CODE: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Bits of the elements (o, i, k) of the student, from `source`, those of the teacher's elements. `replicas`: what
    `replicas_of` says of the columns. Unless VECTOR is 0, `o` is one row; if it is a multiple of four and `in_order`,
    they are BLOCK elements from index `first` on, a multiple of four too."""
    I, K = tl.load(task + EXTENT + 1), tl.load(task + EXTENT + 2)  # noqa: E741
    w = to_compute(source, CODE)
    x = share(task, w, o, rows, i, mask, CODE)
    if NOISE == REPLICAS:
        seen = tl.load(task + OUT_SEEN)
        noisy = (sigma << 1 != 0) & (load_int(seen, o, rows & (seen != 0)) != 0)
        index = (o * I + i) * K + k
        tensor_id = tl.load(task + TENSOR_ID).to(tl.uint32)
        stream = tl.full([], REPLICAS, tl.uint32)
        if VECTOR == 0:
            x = tl.where(noisy & (w - w == 0), plus_noise(x, word_at(index, tensor_id, stream, k0, k1), sigma, CODE), x)
        elif noisy:
            if VECTOR % 4 == 0:
                if in_order:
                    word = words_from(first, tensor_id, stream, k0, k1, BLOCK)
                else:
                    word = word_at(index, tensor_id, stream, k0, k1)
            else:
                word = word_at(index, tensor_id, stream, k0, k1)
            x = tl.where(w - w == 0, plus_noise(x, word, sigma, CODE), x)
    bits = finish(source, w, x, CODE)
    if NOISE == CANCELLING:
        order, following, any_noise, any_odd, most_others = replicas
        if any_noise != 0:
            index = (o * tl.load(task + SRC_I) + unit) * K + k
            tensor_id = tl.load(task + TENSOR_ID).to(tl.uint32)
            finite = w - w == 0
            # Replica m takes z[m] - z[m + 1]; of a word the one half is z[m], m even, and the other the next.
            word = word_at(index, tensor_id, (order >> 1) + CANCELLING, k0, k1)
            after = word
            if any_odd != 0:
                after = tl.where(order & 1 == 0, word, word_at(index, tensor_id, (order + 1 >> 1) + CANCELLING, k0, k1))
            z = half_noise(word, order & 1) - half_noise(after, order + 1 & 1)
            one = perturbed(task, source, w, o, rows, i, z, mask, sigma, CODE)
            bits = tl.where(finite & (following > i), one, bits)
            # The last replica takes what the others, as stored, leave of the unit's whole weight.
            if most_others != 0:
                last = finite & (following < i)
                nexts = tl.load(task + IN_NEXT)
                stream = order * 0 + CANCELLING
                word = word_at(index, tensor_id, stream, k0, k1)
                z = half_noise(word, 0)
                others = tl.zeros_like(w)
                j = following
                for m in range(1, most_others + 1):
                    if m % 2 == 0:
                        word = word_at(index, tensor_id, stream + (m >> 1), k0, k1)
                    walking = last & (j != i)
                    z_next = half_noise(word, m % 2)
                    other = perturbed(task, source, w, o, rows, j, z - z_next, walking, sigma, CODE)
                    others = tl.where(walking, others + to_compute(other, CODE), others)
                    j = tl.where(walking, load_int(nexts, j, walking), j)
                    z = z_next
                total = load_compute(tl.load(task + IN_TOTAL), i, last, CODE)
                whole = scaled(task, w, o, rows, total, last, CODE)
                bits = tl.where(last, finish(source, w, whole - others, CODE), bits)
    return bits


@triton.jit
def rows_tile(
    task, first, column, k0, k1,
    CODE: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A tile of teacher rows. VECTOR: so many elements from a multiple of so many lie in one 16-byte piece of a row."""
    src, dst = tl.load(task + SRC), tl.load(task + DST)
    in_map = tl.load(task + IN_MAP)
    row_begin, row_list = tl.load(task + ROW_BEGIN), tl.load(task + ROW_LIST)
    I, K = tl.load(task + EXTENT + 1), tl.load(task + EXTENT + 2)  # noqa: E741
    units = tl.load(task + SRC_I).to(tl.int32)
    kernel = K.to(tl.int32)
    k_outer = tl.load(task + K_OUTER) != 0
    in_order = (tl.load(task + K_OUTER) == 0) | (K == 1)
    inner = tl.where(k_outer, I, K).to(tl.uint32)
    src_row, dst_row = tl.load(task + SRC_STRIDE), tl.load(task + DST_STRIDE)
    sigma = sigma_of(task, NOISE, CODE)
    row = I * K
    end = tl.minimum(column + tl.load(task + TILE_COLUMNS), row)
    last = tl.minimum(first + tl.load(task + TILE_ROWS), tl.load(task + SRC_O))
    # Triton stores a vector at once where it can tell that all of it is inside, and aligned: hence the odd forms.
    begin = column // VECTOR
    for at in range(0, (end - column).to(tl.int32), BLOCK):  # within a row 32 bits suffice
        e = (begin * VECTOR).to(tl.int32) + at + tl.arange(0, BLOCK)
        mask = e // VECTOR < tl.cdiv(end, VECTOR).to(tl.int32)
        outer = e.to(tl.uint32) // inner
        within = e.to(tl.uint32) - outer * inner
        i = tl.where(k_outer, within, outer).to(tl.int32)
        k = tl.where(k_outer, outer, within).to(tl.int32)
        unit = tl.where(in_map != 0, load_int(in_map, i, mask & (in_map != 0)), i)
        offset = tl.where(k_outer, k * units + unit, unit * kernel + k)
        replicas = replicas_of(task, i, mask, sigma, NOISE)
        for r in range(first, last):
            source = tl.load(pointer(src, CODE) + r * src_row + offset, mask=mask, other=0)
            start = tl.where(row_begin != 0, load_int(row_begin, r, row_begin != 0).to(tl.int64), r)
            stop = tl.where(row_begin != 0, load_int(row_begin, r + 1, row_begin != 0).to(tl.int64), r + 1)
            for n in range(start, stop):
                o = tl.where(row_begin != 0, load_int(row_list, n, row_begin != 0).to(tl.int64), n)
                first_e = o * row + (begin * VECTOR + at)
                bits = made(
                    task, source, o, o >= 0, i, unit, k, mask, sigma, k0, k1, replicas, in_order, first_e,
                    CODE, NOISE, BLOCK, VECTOR,
                )  # fmt: skip
                to = pointer(dst, CODE) + dst_row // VECTOR * o * VECTOR + e
                if VECTOR > 1:
                    # Checked where Triton debugs, as its interpreter does in the tests.
                    tl.device_assert(tl.min(to.to(tl.int64)) % 16 == 0, "not at a multiple of sixteen bytes")
                    to = tl.multiple_of(to, 16)
                tl.store(to, bits, mask=mask)


@triton.jit
def elements_tile(
    task, number, k0, k1,
    CODE: tl.constexpr, NOISE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    src, dst = tl.load(task + SRC), tl.load(task + DST)
    out_map, in_map = tl.load(task + OUT_MAP), tl.load(task + IN_MAP)
    O, I, K = tl.load(task + EXTENT), tl.load(task + EXTENT + 1), tl.load(task + EXTENT + 2)  # noqa: E741
    k_outer = tl.load(task + K_OUTER) != 0
    sigma = sigma_of(task, NOISE, CODE)
    # The tile's place is found once in 64 bits; inside it, 32 bits suffice, since a row is shorter than 2**31.
    begin = number * TILE
    row = I * K
    first_o = begin // row
    first_rest = (begin - first_o * row).to(tl.uint32)
    inner = tl.where(k_outer, I, K).to(tl.uint32)
    for at in range(0, TILE, BLOCK):
        e = at + tl.arange(0, BLOCK)
        mask = begin + e < O * row
        rest = first_rest + e.to(tl.uint32)
        rows = rest // row.to(tl.uint32)
        rest = rest - rows * row.to(tl.uint32)
        outer = rest // inner
        within = rest - outer * inner
        o = first_o + rows.to(tl.int64)
        i = tl.where(k_outer, within, outer).to(tl.int32)
        k = tl.where(k_outer, outer, within).to(tl.int32)
        from_o = tl.where(out_map != 0, load_int(out_map, o, mask & (out_map != 0)).to(tl.int64), o)
        unit = tl.where(in_map != 0, load_int(in_map, i, mask & (in_map != 0)), i)
        at_src = (
            from_o * tl.load(task + SRC_STRIDE)
            + unit * tl.load(task + SRC_STRIDE + 1)
            + k * tl.load(task + SRC_STRIDE + 2)
        )
        source = load_bits(src, at_src, mask, CODE)
        replicas = replicas_of(task, i, mask, sigma, NOISE)
        bits = made(
            task, source, o, mask, i, unit, k, mask, sigma, k0, k1, replicas, False, 0,
            CODE, NOISE, BLOCK, 0,
        )  # fmt: skip
        at_dst = (
            o * tl.load(task + DST_STRIDE) + i * tl.load(task + DST_STRIDE + 1) + k * tl.load(task + DST_STRIDE + 2)
        )
        store_bits(dst, at_dst, bits, mask, CODE)


@triton.jit(do_not_specialize=["k0", "k1"])
def gather_scale_kernel(
    tasks, tiles, k0, k1,
    CODE: tl.constexpr, NOISE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0).to(tl.int64) * 4
    task = tasks + tl.load(tile).to(tl.int64) * WORDS
    first = tl.load(tile + 1).to(tl.int64)
    column = tl.load(tile + 2).to(tl.int64)
    k0 = k0.to(tl.uint32)
    k1 = k1.to(tl.uint32)
    if tl.load(task + ROWS) != 0:
        # Rows of whole vectors, all of them aligned? Then so is every vector of every row.
        row = tl.load(task + EXTENT + 1) * tl.load(task + EXTENT + 2)
        uneven = tl.load(task + DST) | ((row | tl.load(task + DST_STRIDE)) * (16 // VECTOR))
        if uneven % 16 == 0:
            rows_tile(task, first, column, k0, k1, CODE, NOISE, BLOCK, VECTOR)
        else:
            rows_tile(task, first, column, k0, k1, CODE, NOISE, BLOCK, 1)
    else:
        elements_tile(task, first, k0, k1, CODE, NOISE, TILE, BLOCK)


def run(bound: BoundGatherScale) -> None:
    for part in bound.parts:
        launch = part.prepared.launch
        noise = NOISES[bound.noise] if bound.has_noise else 0
        device = bound.out[0].device
        with native.launching_on(device):
            gather_scale_kernel[(part.prepared.tiles.shape[0],)](
                part.tasks,
                part.prepared.tiles,
                bound.seed & 0xFFFFFFFF,
                bound.seed >> 32,
                CODE=dtypes.TABLE[launch.dtype].code,
                NOISE=noise,
                TILE=TILE,
                BLOCK=TILE if device.type == "cpu" else BLOCKS[noise],
                VECTOR=VECTOR_BYTES // launch.dtype.itemsize,
                **OPTIONS,
            )
