"""Rotary positions by complex numbers, as LLaMA's own code has them; Fourier transforms; what else is complex."""

from collections.abc import Callable

import net2net
import pytest
import torch
from test_computed_weights import randomised, same_or_refused
from torch import Tensor, nn


class Attention(nn.Module):
    """16 features in 4 heads, of whose keys and values there are 2."""

    def __init__(self, turn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.key_heads, self.per_head = 4, 2, 4
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out, self.turn = nn.Linear(16, 16), [turn]

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.per_head)
        k = self.k(x).view(b, n, self.key_heads, self.per_head)
        v = self.v(x).view(b, n, self.key_heads, self.per_head)
        q, k = self.turn[0](q, turns), self.turn[0](k, turns)
        made = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), enable_gqa=True)
        return x + self.out(made.transpose(1, 2).reshape(b, n, -1))


class Net(nn.Module):
    def __init__(self, turn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(5, 16), nn.Linear(16, 3)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(2))
        self.blocks = nn.ModuleList(Attention(turn) for _ in range(2))
        angles = torch.outer(torch.arange(32.0), 10.0 ** -torch.arange(2.0)).double()
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = block(norm(h), self.turns[: x.shape[1]])
        return self.last(h)


def turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[:, None]).flatten(3)


def by_parts(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns[:, None]
    return torch.stack([pairs.real, pairs.imag], -1).flatten(-2)


def put_together(x: Tensor, turns: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    pairs = torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1)) * turns[:, None]
    return torch.cat(torch.view_as_real(pairs).unbind(-1), -1)


@pytest.mark.parametrize("turn", [turned, by_parts, put_together])
@pytest.mark.parametrize("width", [2, 1.5])
def test_rotary_positions_by_complex_numbers(turn: Callable[[Tensor, Tensor], Tensor], width: float) -> None:
    torch.manual_seed(0)
    model, x = randomised(Net(turn)), torch.randn(2, 6, 5).double()
    plan = net2net.plan_widen(model, x, width)
    student = plan.apply(model)
    assert not plan.skipped
    assert student.blocks[0].heads == 8
    for n in (6, 9):
        assert net2net.verify(model, student, torch.randn(2, n, 5).double()).max_rel < 1e-13


def written(x: Tensor, turns: Tensor) -> Tensor:
    x = x.clone()
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turns[:, None])
    return x


def written_before(x: Tensor, turns: Tensor) -> Tensor:
    x = x.clone()
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    x[..., 0] = 2 * x[..., 1]
    return torch.view_as_real(pairs * turns[:, None]).flatten(3)


def of_neighbours(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(torch.stack([x, x.roll(1, -1)], -1))
    return pairs.abs() + pairs.angle()


def across_heads(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.transpose(-1, -2).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[:, :1, None]).flatten(3).transpose(-1, -2)


def seen_as_other_integers(x: Tensor, turns: Tensor) -> Tensor:
    return x + (x.view(torch.int64) > 0).double()


@pytest.mark.parametrize("turn", [written, written_before, of_neighbours, across_heads, seen_as_other_integers])
def test_what_else_is_seen_as_numbers_of_another_kind(turn: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    same_or_refused(randomised(Net(turn)), torch.randn(2, 6, 5).double())


class Spectral(nn.Module):
    """A fast Fourier convolution (LaMa): a convolution of the real and imaginary parts of a picture's spectrum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(2 * channels, 2 * channels, 1), nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        spectrum = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        parts = torch.stack((spectrum.real, spectrum.imag), -1).permute(0, 1, 4, 2, 3).reshape(b, 2 * c, h, -1)
        parts = self.norm(self.mix(parts)).relu().view(b, c, 2, h, -1).permute(0, 1, 3, 4, 2).contiguous()
        return torch.fft.irfftn(torch.complex(parts[..., 0], parts[..., 1]), s=(h, w), dim=(-2, -1), norm="ortho")


class Correlation(nn.Module):
    """Each channel with itself, by way of its spectrum."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft(x, dim=2)
        return torch.fft.ifft(spectrum * spectrum.conj() + spectrum.abs().square(), dim=2).real


@pytest.mark.parametrize("width", [2, 1.5])
@pytest.mark.parametrize("kind", [Spectral, Correlation])
def test_fourier_transforms_over_places(kind: type[nn.Module], width: float) -> None:
    torch.manual_seed(0)
    inner = kind(6) if kind is Spectral else kind()
    model = randomised(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), inner, nn.Conv2d(6, 2, 3)))
    plan = net2net.plan_widen(model, torch.randn(2, 3, 8, 8).double(), width)
    student = plan.apply(model)
    assert not plan.skipped
    for training in (False, True):
        model.train(training), student.train(training)
        for size in ((8, 8), (7, 10)):
            assert net2net.verify(model, student, torch.randn(2, 3, *size).double()).max_rel < 1e-12


#: Where conjugation counts, and transforms over channels or over what is not the same everywhere.
FOURIER = {
    "conjugated": lambda x: (torch.fft.fft(x, dim=2) * (1 + 2j)).conj().imag,
    "and itself": lambda x: (lambda z: (z.conj() * 1j + z).abs())(torch.fft.fft(x, dim=2)),
    "cat": lambda x: (lambda z: torch.cat([z, z.conj()], 1).imag.unflatten(1, (2, -1)).sum(1))(torch.fft.fft(x, dim=2)),
    "channels": lambda x: torch.fft.fft(x, dim=1).abs(),
    "halves": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=x.shape[1], dim=1),
    "all": lambda x: torch.fft.fftn(x, dim=(1, 2)).real,
    "two pictures": lambda x: torch.fft.fft(torch.cat([x, x.flip(1)], 2), dim=2).abs()[:, :, :8],
    "shifted": lambda x: torch.fft.fftshift(torch.fft.fft(x, dim=2), dim=2).abs(),
}


@pytest.mark.parametrize("made", FOURIER.values(), ids=FOURIER)
def test_other_transforms_are_right_or_refused(made: Callable[[Tensor], Tensor]) -> None:
    class Made(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return made(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), Made(), nn.Conv2d(6, 2, 3))
    for width in (2, 1.5):
        same_or_refused(randomised(model), torch.randn(2, 3, 8, 8).double(), width)
