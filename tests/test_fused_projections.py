"""One layer that makes queries, keys and values, and the ways in which code cuts what it makes: the numbers by which it
does so are found, and grow by whole heads."""

import types

import net2net
import pytest
import torch
from torch import Tensor, nn

Parts = tuple[Tensor, ...]


class Attention(nn.Module):
    """`cut` gives queries, keys and values. Not all of the numbers are used."""

    def __init__(self, dim: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.key_heads, self.head_dim = dim, heads, key_heads, dim // heads
        self.q_size, self.kv_size = dim, key_heads * self.head_dim
        self.sizes = [self.q_size, self.kv_size, self.kv_size]
        self.config = types.SimpleNamespace(dim=dim, heads=heads, key_heads=key_heads)
        self.qkv, self.out = nn.Linear(dim, sum(self.sizes)), nn.Linear(dim, dim)

    def cut(self, y: Tensor) -> Parts:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.cut(self.qkv(x))
        q = q.unflatten(-1, (self.heads, self.head_dim))
        k, v = (part.unflatten(-1, (self.key_heads, self.head_dim)) for part in (k, v))
        made = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), enable_gqa=True)
        return x + self.out(made.transpose(1, 2).flatten(2))


class ByAProduct(Attention):
    def cut(self, y: Tensor) -> Parts:
        return y.split([self.dim, self.key_heads * self.head_dim, self.key_heads * self.head_dim], -1)


class BySizes(Attention):
    def cut(self, y: Tensor) -> Parts:
        return y.split((self.q_size, self.kv_size, self.kv_size), -1)


class ByAList(Attention):
    def cut(self, y: Tensor) -> Parts:
        return y.split(self.sizes, -1)


class BySlices(Attention):
    def cut(self, y: Tensor) -> Parts:
        end = self.config.heads * self.head_dim
        last = end + self.config.key_heads * self.head_dim
        return y[..., :end], y[..., end:last], y[..., last:]


class FromTheEnd(Attention):
    def cut(self, y: Tensor) -> Parts:
        size = self.key_heads * self.head_dim
        return y[..., : self.dim], y[..., self.dim : -size], y[..., -size:]


class ByNarrowing(Attention):
    def cut(self, y: Tensor) -> Parts:
        size = self.key_heads * self.head_dim
        return y.narrow(-1, 0, self.dim), y.narrow(-1, self.dim, size), y.narrow(-1, self.dim + size, size)


class AtPlaces(Attention):
    def cut(self, y: Tensor) -> Parts:
        return torch.tensor_split(y, (self.config.dim, self.config.dim + self.key_heads * self.head_dim), -1)


CUTS = [ByAProduct, BySizes, ByAList, BySlices, FromTheEnd, ByNarrowing, AtPlaces]


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize(("dim", "heads", "key_heads"), [(64, 8, 8), (64, 8, 2), (24, 4, 2), (30, 6, 3)])
def test_numbers_that_cut_it_are_found(dim: int, heads: int, key_heads: int, kind: type[Attention]) -> None:
    torch.manual_seed(0)
    blocks = (kind(dim, heads, key_heads) for _ in range(2))
    # (Weights of a usual size: with large ones, scores are in the hundreds, and softmax magnifies rounding.)
    model = nn.Sequential(nn.Linear(5, dim), *blocks, nn.LayerNorm(dim), nn.Linear(dim, 2)).double()
    nn.init.uniform_(model[3].weight, 0.5, 1.5), nn.init.normal_(model[3].bias)
    plan = net2net.plan_widen(model, torch.randn(2, 4, 5).double(), 2)
    assert not plan.skipped
    student = plan.apply(model)
    assert all(block.head_dim == dim // heads for block in student[1:3])
    for length in (4, 7):
        assert net2net.verify(model, student, torch.randn(2, length, 5).double()).max_rel < 1e-13


class Cache:
    """Keys and values of all calls, one after the other."""

    def __init__(self) -> None:
        self.held: list[tuple[Tensor, Tensor]] = []

    def add(self, *pair: Tensor) -> tuple[Tensor, Tensor]:
        self.held.append((pair[0], pair[1]))
        keys, values = zip(*self.held, strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)


class WithCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.head_dim = 4, 8
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        shape = (*x.shape[:2], self.n_heads, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = cache.add(k, v)
        scores = (q / self.head_dim**0.5) @ k.mT
        return x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


def test_what_a_failed_try_left_in_a_cache_is_undone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention, self.last = nn.Linear(5, 32), WithCache(), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            cache = Cache()
            first = self.attention(self.embed(x[:, :2]), cache)
            return self.last(torch.cat([first, self.attention(self.embed(x[:, 2:]), cache)], 1))

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(2, 6, 5).double()
    plan = net2net.plan_widen(model, x, 2)
    assert [(change.name, change.after) for change in plan.changes] == [("n_heads", 8)]
    assert net2net.verify(model, plan.apply(model), x).max_rel < 1e-13
