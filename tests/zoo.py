"""Small networks with what larger ones are made of: attention, norms that mix units, groups, shuffles, gates, tables.
Each keeps numbers in attributes as code in the wild does."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Fused q, k and v, heads by reshape, a table of relative positions, features per head from what is there."""

    def __init__(self, dim: int, heads: int, tokens: int, fused: bool = True) -> None:
        super().__init__()
        self.num_heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        at = torch.arange(tokens)
        self.register_buffer("index", (at[:, None] - at[None] + tokens - 1).flatten())

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(n, n, -1).permute(2, 0, 1).contiguous()
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        else:
            y = ((q * (c // self.num_heads) ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, tokens: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, tokens, fused)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.gamma = nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.gamma * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches, a class token, embeddings of positions, pre-norm blocks."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.embed_dim = 12
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.ModuleList(Block(12, 3, 5, fused) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).reshape(len(x), self.embed_dim, -1).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Registers(VisionTransformer):
    """Several tokens of its own beside those of the image, which have no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.randn(1, 3, 12))
        self.blocks = nn.ModuleList(Block(12, 3, 8, True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        own = [self.token.expand(len(x), -1, -1), self.registers.expand(len(x), -1, -1)]
        x = torch.cat([*own, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class LanguageModel(nn.Module):
    """A table of tokens, torch's own attention under a mask, a gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.RMSNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, index: Tensor) -> Tensor:
        n = index.shape[1]
        x = self.tokens(index) + self.positions(torch.arange(n))
        mask = torch.full((n, n), float("-inf"), dtype=x.dtype).triu(1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.norm2(x)
        return self.out(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class TiedLanguageModel(nn.Module):
    """The table of tokens is the matrix of the output layer too, behind a norm by hand that casts, a scale, and a slice
    (T5, LLaMA); a second output layer with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.gain, self.norm2, self.bias = nn.Parameter(torch.ones(8)), nn.LayerNorm(8), nn.Parameter(torch.zeros(11))

    def forward(self, index: Tensor) -> Tensor:
        x = self.tokens(index)
        x = x + self.down(F.silu(self.up(self.norm(x))))
        y = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
        y = (self.gain * y.to(x.dtype))[:, -2:] * 0.7
        y = F.linear(y, self.tokens.weight)
        return torch.cat([y, F.linear(self.norm2(x), self.tokens.weight, self.bias)], 1)


class Grouped(nn.Module):
    """Cardinality, group norm, channel shuffle, pixel shuffle, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
        self.cardinal = nn.Conv2d(12, 24, 3, padding=1, groups=4)
        self.b = nn.Conv2d(24, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.c = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Conv2d(6 + 8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cardinal(F.relu(self.norm(self.a(x))))
        x = F.relu(self.b(x))
        shuffled = F.pixel_shuffle(x, 2)
        return self.head(torch.cat((self.c(shuffled), self.up(x)), 1))


class Shuffled(nn.Module):
    """Two branches of one width, shuffled into each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.c = nn.Conv2d(12, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.a(x), self.b(x)), 1)
        b, c, h, w = x.shape
        x = self.norm(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))
        return self.head(self.c(x.relu()).mean((2, 3)))


class Merging(nn.Module):
    """Patches side by side under a layer norm; a unit of several features that occurs four times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 1), nn.LayerNorm(6)
        self.merged, self.reduction, self.head = nn.LayerNorm(24), nn.Linear(24, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(F.gelu(self.reduction(self.merged(x))).mean((1, 2)))


class Modulated(nn.Module):
    """One linear layer makes scale and shift of all features (as in diffusion models)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.condition = nn.Linear(5, 8), nn.Linear(5, 16)
        self.norm, self.fc, self.head = nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(x).chunk(2, -1)
        y = self.stem(x)
        return self.head(y + self.fc(self.norm(y) * (1 + scale) + shift))


class NormedQueries(nn.Module):
    """A gain that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.heads, self.head_dim = 2, 4
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.q_norm, self.head = nn.LayerNorm(4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = self.stem(x)
        q, k, v = (f(x).view(b, n, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, n, -1)))


class Recurrent(nn.Module):
    """A recurrent layer, which is left alone, between layers that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 5)
        self.lstm, self.c, self.head = nn.LSTM(5, 7, batch_first=True), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(self.b(self.a(x).relu()))
        return self.head(self.c(x).relu())


class Gating(nn.Module):
    """A gated linear unit over channels, depthwise convolutions both ways, and norms by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gated = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 8, 1)
        self.depthwise, self.b, self.head = nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 6, 1), nn.Linear(6, 3)
        self.up = nn.ConvTranspose1d(4, 4, 2, 2, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x * (x.square().mean(1, keepdim=True) + 1e-5).rsqrt()
        x = self.b(self.up(self.depthwise(F.glu(self.gated(x), 1))))
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, correction=0) + 0.1)
        return self.head((x / x.abs().max()).mean(2))


class Graph(nn.Module):
    """Messages along edges, summed up by an index, by a scattered one, and by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 3, 1, 4], [1, 2, 3, 0, 4, 0]]))
        self.a, self.b, self.c, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        source, target = self.edges
        y = self.a(x)
        x = (y + torch.zeros_like(y).index_add(0, target, y[source])).relu()
        y = self.b(x)
        x = y.new_zeros(y.shape).scatter_add_(0, target[:, None].expand(-1, y.shape[1]), y[source]).relu()
        matrix = torch.zeros(len(x), len(x)).to(x)
        matrix[target, source] = 1.0
        return self.head((matrix @ self.c(x)).relu())


class Scan(nn.Module):
    """A selective state space, step by step: a gate, a causal convolution, steps of a low rank, states of fixed size.
    Its matrix of decays keeps its width, but the rank grows."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.states = 2, 3
        self.embed, self.norm, self.gated = nn.Linear(5, 4), nn.RMSNorm(4), nn.Linear(4, 12, bias=False)
        self.conv, self.parts = nn.Conv1d(6, 6, 3, padding=2, groups=6), nn.Linear(6, 2 + 3 + 3)
        self.steps, self.out, self.head = nn.Linear(2, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        self.decay, self.skip = nn.Parameter(torch.rand(6, 3)), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y, z = self.gated(self.norm(x)).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : y.shape[1]]).transpose(1, 2)
        step, into, outof = self.parts(y).split([self.rank, self.states, self.states], -1)
        step = F.softplus(self.steps(step))
        state, seen = y.new_zeros(len(y), y.shape[2], self.states), []
        for t in range(y.shape[1]):
            state = state * (step[:, t, :, None] * -self.decay.exp()).exp()
            state = state + (step * y)[:, t, :, None] * into[:, t, None]
            seen.append((state @ outof[:, t, :, None])[..., 0])
        return self.head(x + self.out((torch.stack(seen, 1) + y * self.skip) * F.silu(z)))


class CrossedSigns(nn.Module):
    """One channel beside its negative: what looks alike is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 1, 3), nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(torch.cat((x, -x), 1).relu()).mean((2, 3)))


class Ghosts(nn.Module):
    """Half of the channels are cheap functions of the others, cut to a width that is kept elsewhere (GhostNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 3)
        self.ghosts = nn.ModuleList(Ghost(6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for ghost in self.ghosts:
            x = x + ghost(x)
        return self.head(x.relu().mean((2, 3)))


class Ghost(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_chs = channels
        self.primary = nn.Conv2d(channels, 4, 1)
        self.cheap = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat((x, self.cheap(x)), 1)[:, : self.out_chs]


class DualPaths(nn.Module):
    """A residual path and a dense one in one tensor, cut apart by slices (DPN), a split into sizes that are kept one by
    one (FasterNet), and one into sizes in a list (FocalNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow, self.partial = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(2, 2, 3, padding=1)
        self.residual, self.sizes = 4, [3, 3, 1]
        self.next, self.mix, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 7, 1), nn.Linear(3, 2)
        self.mine, self.rest = 2, 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.grow(x.relu())
        x = torch.cat((x + y[:, : self.residual], y[:, self.residual :]), 1)
        a, b = torch.split(self.next(x.relu()), [self.mine, self.rest], 1)
        x = torch.cat((self.partial(a), b), 1)
        query, context, gate = self.mix(x.relu()).split(self.sizes, 1)
        return self.head((query * context.tanh() * gate.sigmoid()).mean((2, 3)))


class Rotary(nn.Module):
    """Rotary embeddings of positions in halves, fewer heads of keys than of queries, each number in its attribute
    (LLaMA)."""

    def __init__(self, dim: int, heads: int, groups: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, dim // heads
        self.norm, self.out = nn.RMSNorm(dim), nn.Linear(dim, dim, bias=False)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k, self.v = (nn.Linear(dim, groups * self.size, bias=False) for _ in "kv")
        angles = torch.outer(torch.arange(tokens).float(), 0.1 ** torch.arange(self.size // 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rotated(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat((-b, a), -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(b, n, self.heads, self.size).transpose(1, 2)
        k, v = (f(y).view(b, n, self.groups, self.size).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (self.rotated(k), v))
        y = F.scaled_dot_product_attention(self.rotated(q), k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, n, -1))


class Decomposed(nn.Module):
    """A table of positions for each direction, which all heads are multiplied by; the heads stand beside the images
    (SAM)."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.stem, self.norm = nn.Linear(5, dim), nn.LayerNorm(dim)
        self.qkv, self.out, self.head = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, 3)
        self.rows, self.columns = (nn.Parameter(torch.randn(2 * side - 1, dim // heads)) for _ in "hw")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * self.heads, n, -1).unbind(0)
        at = torch.arange(self.side)
        apart = at[:, None] - at + self.side - 1
        grid = q.unflatten(1, (self.side, self.side))
        down = torch.einsum("bhwc,hkc->bhwk", grid, self.rows[apart])[..., None]
        along = torch.einsum("bhwc,wkc->bhwk", grid, self.columns[apart])[..., None, :]
        bias = (down + along).reshape(len(q), n, n)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = y.view(b, self.heads, n, -1).transpose(1, 2).reshape(b, n, -1)
        return self.head(x + self.out(y))


class Mixer(nn.Module):
    """Tokens of each channel are mixed by a matrix, which stays; then channels of each token (MLP-Mixer, gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(9, 5), nn.GELU(), nn.Linear(5, 9))
        self.channels = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 10), nn.GELU())
        self.space, self.back, self.head = nn.Linear(9, 9), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        u, v = self.channels(x).chunk(2, -1)
        x = x + self.back(u * self.space(v.transpose(1, 2)).transpose(1, 2))
        return self.head(x.mean(1))


class Bias(nn.Module):
    """A bias for attention, by a small network of the distance; asked by a method, not by its forward."""

    def __init__(self, heads: int, tokens: int) -> None:
        super().__init__()
        self.num_heads, self.shape = heads, (tokens, tokens, heads)
        self.mlp = nn.Sequential(nn.Linear(1, 7), nn.ReLU(), nn.Linear(7, heads))
        at = torch.arange(tokens)
        self.register_buffer("distance", (at[:, None] - at[None])[..., None] / tokens)

    def bias(self) -> Tensor:
        table = self.mlp(self.distance.to(self.mlp[0].weight.dtype)).view(-1, self.num_heads)
        return table.view(self.shape).permute(2, 0, 1)


class Biased(nn.Module):
    def __init__(self, dim: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.relative = heads, dim // heads, Bias(heads, tokens)
        self.norm, self.qkv, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.relative.bias())
        return x + self.proj(y.transpose(1, 2).reshape(b, n, c))


class NormedByHand(nn.Module):
    """Each head divided by its own norm, with a gain for all of them, as language models write it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.weight = nn.Parameter(torch.ones(self.head_dim))

    def heads(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return layer(x).view(*x.shape[:2], -1, self.head_dim)

    def normed(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.normed(self.heads(self.q, x)), self.normed(self.heads(self.k, x)), self.heads(self.v, x)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return x + self.proj(y.transpose(1, 2).flatten(2))


class Grouping(nn.Module):
    """Queries in groups, each of which shares its keys and values, as torch's own attention has it."""

    def __init__(self, dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.q, self.k, self.v = nn.Linear(dim, dim), *(nn.Linear(dim, groups * self.head_dim) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return x + self.proj(y.transpose(1, 2).flatten(2))


class Crossing(nn.Module):
    """torch's attention, of what it was not given as keys; its joint weight is used a part at a time."""

    def __init__(self, dim: int, heads: int, values: bool) -> None:
        super().__init__()
        self.q, self.k, self.values = nn.Linear(3, dim), nn.Linear(3, dim), values
        self.attention, self.head = nn.MultiheadAttention(dim, heads, batch_first=True), nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.k(x.flip(1)[:, 1:])
        return self.head(self.attention(self.q(x), y, y.tanh() if self.values else y)[0])


class Seq2Seq(nn.Module):
    """torch's own, which compares the width of what it is given with a number that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transformer(self.embedding(x), self.embedding(x[:, 1:])))


class Neighbours(nn.Module):
    """The mean of each place and those around it, zeros beyond the border among them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        around = F.unfold(y, 3, padding=1).view(*y.shape[:2], 9, -1)
        return self.head(around.mean(2).view(y.shape))


class Experts(nn.Module):
    """Each token is handled by two of several layers, which are added up by index."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 12), nn.GELU(), nn.Linear(12, dim)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(tokens).softmax(-1).topk(2)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == i)
            out.index_add_(0, token, weights[token, rank, None] * expert(tokens[token]))
        return x + out.reshape(x.shape)


class Network(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    #: The layers that are left alone.
    skipped: tuple[str, ...] = ()
    tokens: bool = False

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, Tensor]:
        """The network with random gains and tables, in eval mode, and a batch of inputs."""
        torch.manual_seed(seed)
        model = self.make().to(dtype).eval()
        with torch.no_grad():
            for name, t in model.named_parameters():
                if t.dim() == 1 and name.endswith("weight"):
                    t.copy_(torch.rand_like(t) + 0.5)
            for name, t in model.named_buffers():
                if name.endswith("running_var"):
                    t.copy_(torch.rand_like(t) + 0.5)
        x = torch.randint(11, self.shape) if self.tokens else torch.randn(self.shape, dtype=dtype)
        return model, x


NETWORKS = {
    "vision_transformer": Network(VisionTransformer, (3, 3, 8, 8)),
    "vision_transformer_by_hand": Network(lambda: VisionTransformer(False), (3, 3, 8, 8)),
    "registers": Network(Registers, (3, 3, 8, 8)),
    "decomposed_positions": Network(lambda: Decomposed(8, 2, 2), (2, 4, 5)),
    "language_model": Network(LanguageModel, (2, 6), tokens=True),
    "tied_language_model": Network(TiedLanguageModel, (2, 6), tokens=True),
    "grouped": Network(Grouped, (2, 3, 6, 6)),
    "shuffled": Network(Shuffled, (4, 3, 5, 5)),
    "merging": Network(Merging, (2, 3, 4, 4)),
    "modulated": Network(Modulated, (3, 4, 5)),
    "normed_queries": Network(NormedQueries, (2, 4, 5)),
    "ghosts": Network(Ghosts, (2, 3, 5, 5)),
    # A gate that is one channel for all others stays one.
    "dual_paths": Network(DualPaths, (2, 3, 5, 5), ("mix",)),
    "rotary": Network(
        lambda: nn.Sequential(nn.Linear(3, 16), Rotary(16, 4, 2, 5), Rotary(16, 4, 4, 5), nn.Linear(16, 3)), (2, 5, 3)
    ),
    "seq2seq": Network(Seq2Seq, (2, 6), tokens=True),
    "neighbours": Network(Neighbours, (2, 3, 6, 6)),
    # As many outputs as there are experts.
    "experts": Network(lambda: nn.Sequential(nn.Linear(5, 8), Experts(8, 4), nn.Linear(8, 3)), (3, 6, 5), ("1.gate",)),
    "mixer": Network(Mixer, (2, 3, 6, 6), ("tokens.0", "tokens.0", "tokens.2", "tokens.2", "space", "space")),
    "biased": Network(lambda: nn.Sequential(nn.Linear(3, 12), Biased(12, 3, 5), nn.Linear(12, 4)), (2, 5, 3)),
    "grouping": Network(
        lambda: nn.Sequential(nn.Linear(3, 16), Grouping(16, 4, 2), Grouping(16, 4, 1), nn.Linear(16, 3)), (2, 5, 3)
    ),
    "normed_by_hand": Network(
        lambda: nn.Sequential(nn.Linear(3, 12), NormedByHand(12, 3), nn.Linear(12, 3)), (2, 5, 3)
    ),
    "crossing": Network(lambda: Crossing(12, 3, False), (2, 5, 3)),
    "crossing_values": Network(lambda: Crossing(12, 3, True), (2, 5, 3)),
    "recurrent": Network(Recurrent, (2, 5, 4), ("b",)),
    "gating": Network(Gating, (2, 3, 7)),
    "graph": Network(Graph, (5, 4)),
    "scan": Network(Scan, (2, 4, 5), ("gated",)),
    # A single channel that occurs twice cannot be told from two places of it, so it stays.
    "crossed_signs": Network(CrossedSigns, (2, 3, 6, 6), ("a",)),
}
