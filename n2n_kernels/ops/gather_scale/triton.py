"""gather_scale in Triton: one launch per dtype over the same task table as the compiled backends."""

import triton
import triton.language as tl

from n2n_kernels import dtypes, native
from n2n_kernels.ops.gather_scale.request import NOISES, Request
from n2n_kernels.ops.gather_scale.tasks import Column, pack
from n2n_kernels.table import TILE
from n2n_kernels.triton_common import (
    as_compute,
    finish,
    load_bits,
    load_compute,
    load_int,
    noise_at,
    store_bits,
    to_compute,
)

# Columns of the table, as compile-time constants.
SRC, DST = tl.constexpr(int(Column.SRC)), tl.constexpr(int(Column.DST))
OUT_MAP, IN_MAP = tl.constexpr(int(Column.OUT_MAP)), tl.constexpr(int(Column.IN_MAP))
OUT_SCALE, IN_SCALE = tl.constexpr(int(Column.OUT_SCALE)), tl.constexpr(int(Column.IN_SCALE))
OUT_SEEN, IN_NEXT = tl.constexpr(int(Column.OUT_SEEN)), tl.constexpr(int(Column.IN_NEXT))
IN_TOTAL = tl.constexpr(int(Column.IN_TOTAL))
EXTENT = tl.constexpr(int(Column.O))
SRC_STRIDE, DST_STRIDE = tl.constexpr(int(Column.SRC_STRIDE_O)), tl.constexpr(int(Column.DST_STRIDE_O))
K_OUTER, TENSOR_ID = tl.constexpr(int(Column.K_OUTER)), tl.constexpr(int(Column.TENSOR_ID))
SIGMA, FIRST_TILE = tl.constexpr(int(Column.SIGMA)), tl.constexpr(int(Column.FIRST_TILE))
WORDS = tl.constexpr(len(Column))

#: Elements that a program has in hand at once, by the code of the noise. Each of its 128 threads holds its share in
#: registers, of which cancelling noise takes about 40 an element; beyond 255 a thread spills to memory.
BLOCKS = {0: 512, NOISES["replicas"]: 512, NOISES["cancelling"]: 256}

REPLICAS, CANCELLING = tl.constexpr(NOISES["replicas"]), tl.constexpr(NOISES["cancelling"])


@triton.jit
def scaled(task, w, o, c_in, has_in, mask, CODE: tl.constexpr):
    """(w * c_in) * c_out; a factor that is absent is not multiplied at all."""
    x = tl.where(has_in, w * c_in, w)
    out_scale = tl.load(task + OUT_SCALE)
    has_out = out_scale != 0
    return tl.where(has_out, x * load_compute(out_scale, o, mask & has_out, CODE), x)


@triton.jit
def share(task, w, o, i, mask, CODE: tl.constexpr):
    in_scale = tl.load(task + IN_SCALE)
    has_in = in_scale != 0
    return scaled(task, w, o, load_compute(in_scale, i, mask & has_in, CODE), has_in, mask, CODE)


@triton.jit
def perturbed(task, source, w, o, i, following, k, mask, sigma, k0, k1, CODE: tl.constexpr):
    """Bits of a replica's share plus sigma * (z[i] - z[next])."""
    I, K = tl.load(task + EXTENT + 1), tl.load(task + EXTENT + 2)  # noqa: E741
    tensor_id = tl.load(task + TENSOR_ID).to(tl.uint32)
    z = noise_at((o * I + i) * K + k, tensor_id, CANCELLING, k0, k1)
    z = z - noise_at((o * I + following) * K + k, tensor_id, CANCELLING, k0, k1)
    return finish(source, w, share(task, w, o, i, mask, CODE) + as_compute(z, CODE) * sigma, CODE)


@triton.jit(do_not_specialize=["k0", "k1", "most_replicas"])
def gather_scale_kernel(
    tasks, tile_task, k0, k1, most_replicas,
    CODE: tl.constexpr, NOISE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    task = tasks + tl.load(tile_task + tile).to(tl.int64) * WORDS
    k0 = k0.to(tl.uint32)
    k1 = k1.to(tl.uint32)
    src, dst = tl.load(task + SRC), tl.load(task + DST)
    out_map, in_map = tl.load(task + OUT_MAP), tl.load(task + IN_MAP)
    O, I, K = tl.load(task + EXTENT), tl.load(task + EXTENT + 1), tl.load(task + EXTENT + 2)  # noqa: E741
    k_outer = tl.load(task + K_OUTER) != 0
    sigma = as_compute(tl.load(task + SIGMA).to(tl.float64, bitcast=True), CODE)
    # The tile's place is found once in 64 bits; inside it, 32 bits suffice, since a row is shorter than 2**31.
    begin = (tile - tl.load(task + FIRST_TILE)) * TILE
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
        i = tl.where(k_outer, within, outer).to(tl.int64)
        k = tl.where(k_outer, outer, within).to(tl.int64)

        from_o = tl.where(out_map != 0, load_int(out_map, o, mask & (out_map != 0)), o)
        from_i = tl.where(in_map != 0, load_int(in_map, i, mask & (in_map != 0)), i)
        at_src = (
            from_o * tl.load(task + SRC_STRIDE)
            + from_i * tl.load(task + SRC_STRIDE + 1)
            + k * tl.load(task + SRC_STRIDE + 2)
        )
        source = load_bits(src, at_src, mask, CODE)
        w = to_compute(source, CODE)
        x = share(task, w, o, i, mask, CODE)
        if NOISE == REPLICAS:
            seen = tl.load(task + OUT_SEEN)
            noisy = (load_int(seen, o, mask & (seen != 0)) != 0) & (w - w == 0)
            z = noise_at((o * I + i) * K + k, tl.load(task + TENSOR_ID).to(tl.uint32), REPLICAS, k0, k1)
            x = tl.where(noisy, x + as_compute(z, CODE) * sigma, x)
        bits = finish(source, w, x, CODE)
        if NOISE == CANCELLING:
            nexts = tl.load(task + IN_NEXT)
            linked = mask & (nexts != 0) & (w - w == 0)
            following = tl.where(linked, load_int(nexts, i, linked), i)
            noisy = perturbed(task, source, w, o, i, following, k, mask, sigma, k0, k1, CODE)
            bits = tl.where(following > i, noisy, bits)
            # The last replica takes what the others, as stored, leave of the unit's whole weight.
            last = following < i
            others = tl.zeros_like(w)
            j = following
            for _ in range(1, most_replicas):
                walking = last & (j != i)
                after = load_int(nexts, j, walking)
                other = perturbed(task, source, w, o, j, after, k, walking, sigma, k0, k1, CODE)
                others = tl.where(walking, others + to_compute(other, CODE), others)
                j = tl.where(walking, after, j)
            total = load_compute(tl.load(task + IN_TOTAL), i, last, CODE)
            whole = scaled(task, w, o, total, last, mask, CODE)
            bits = tl.where(last, finish(source, w, whole - others, CODE), bits)
        at_dst = (
            o * tl.load(task + DST_STRIDE) + i * tl.load(task + DST_STRIDE + 1) + k * tl.load(task + DST_STRIDE + 2)
        )
        store_bits(dst, at_dst, bits, mask, CODE)


def run(request: Request) -> None:
    for dtype in {item.src.dtype: None for item in request.items}:
        items = [item for item in request.items if item.src.dtype == dtype and item.out.numel()]
        if not items:
            continue
        device = items[0].src.device
        table, _copies = pack(items, request.noise, device)
        noise = NOISES[request.noise] if any(item.sigma for item in items) else 0
        most = max((item.in_map.most_replicas() for item in items if item.in_map is not None), default=1)
        interpreted = device.type == "cpu"
        with native.launching_on(device):
            gather_scale_kernel[(table.tiles,)](
                table.tasks,
                table.tile_task,
                request.seed & 0xFFFFFFFF,
                request.seed >> 32,
                most,
                CODE=dtypes.TABLE[dtype].code,
                NOISE=noise,
                TILE=TILE,
                BLOCK=TILE if interpreted else BLOCKS[noise],
                # A fused multiply-add rounds once where every other backend rounds twice.
                enable_fp_fusion=False,
            )
