"""The operators' registration: schemas, fake implementations, mutation, and torch.compile."""

from typing import Any

import pytest
import torch
from kernel_cases import assert_same_bits
from torch import Tensor

import n2n_kernels as nk

MAP_OUT, MAP_IN = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([0, 1, 2, 0])


def gather_scale_arguments(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """As the raw operator takes them: a convolution in channels_last, a linear weight left alone, a bias."""
    srcs = [
        torch.ones(4, 3, 3, 3, dtype=dtype, device=device).to(memory_format=torch.channels_last),
        torch.ones(4, 3, dtype=dtype, device=device).t(),
        torch.ones(4, dtype=dtype, device=device),
    ]
    return (
        srcs,
        [MAP_OUT, None, MAP_OUT],
        [MAP_IN, None, None],
        [None, None, torch.ones(5)],
        [torch.tensor([0.5, 1.0, 1.0, 0.5]), None, None],
        [0.1, 0.0, 0.1],
        "cancelling",
        3,
        [0, 1, 2],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_gather_scale(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.n2n.gather_scale, (*gather_scale_arguments(device, dtype), backend))


def test_opcheck_gather_scale_out(backend: str, device: torch.device) -> None:
    out = [torch.zeros(5, 4, 3, 3, device=device), torch.zeros(3, 4, device=device), torch.zeros(5, device=device)]
    torch.library.opcheck(torch.ops.n2n.gather_scale_out, (*gather_scale_arguments(device), backend, out))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_identity(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    tensors = [torch.zeros(4, 2, 3, 3, dtype=dtype, device=device), torch.zeros(3, 5, dtype=dtype, device=device)]
    torch.library.opcheck(torch.ops.n2n.identity_, (tensors, [2, 1], backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_channel_moments(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    x = torch.arange(120.0, device=device).view(2, 3, 4, 5).to(dtype)
    torch.library.opcheck(torch.ops.n2n.channel_moments, (x, 1, backend))
    torch.library.opcheck(torch.ops.n2n.channel_moments, (x.to(memory_format=torch.channels_last), -1, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_tensor_moments(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    tensors = [torch.arange(60.0, device=device).view(3, 4, 5).to(dtype), torch.ones((), device=device)]
    torch.library.opcheck(torch.ops.n2n.tensor_moments, (tensors, backend))


def grow(w: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All four ops in one function, as a growth step would be compiled."""
    u, b = nk.gather_scale(
        [w, bias], [MAP_OUT, MAP_OUT], [MAP_IN, None], in_scales=[torch.tensor([0.5, 1.0, 1.0, 0.5]), None],
        noise_std=[0.1, 0.0], noise="cancelling", seed=5,
    )  # fmt: skip
    layer = torch.zeros(5, 5, 3, 3, device=w.device)
    nk.identity_([layer])
    mean, var = nk.channel_moments(torch.nn.functional.conv2d(x, u, b) + layer.sum())
    _, spread = nk.tensor_moments([w, bias])
    return u * spread.sqrt()[0], mean, var


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(any_device: torch.device, dynamic: bool) -> None:
    torch.compiler.reset()
    w, bias = torch.randn(4, 3, 3, 3, device=any_device), torch.randn(4, device=any_device)
    compiled = torch.compile(grow, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in (5, 6, 7):
        x = torch.randn(2, 4, size, size, device=any_device)
        for a, b in zip(compiled(w, bias, x), grow(w, bias, x), strict=True):
            assert_same_bits(a, b)


def test_compiled_writes_reach_the_tensors(any_device: torch.device) -> None:
    """Functionalisation must know what an op writes to: in-place ops in a graph, on the graph's own inputs."""

    def overwrite(w: Tensor, out: Tensor) -> Tensor:
        nk.identity_([w])
        nk.gather_scale([w], [MAP_OUT], None, out=[out])
        return out + 1

    torch.compiler.reset()
    w, out = torch.zeros(4, 2, 3, device=any_device), torch.zeros(5, 2, 3, device=any_device)
    result = torch.compile(overwrite, backend="aot_eager", fullgraph=True)(w, out)
    expected = torch.zeros(4, 2, 3)
    expected[[0, 1], [0, 1], 1] = 1
    assert_same_bits(w, expected)
    assert_same_bits(out, expected[MAP_OUT])
    assert_same_bits(result, expected[MAP_OUT] + 1)


def test_the_schemas_say_what_is_written() -> None:
    written = {
        name: [a.name for a in getattr(torch.ops.n2n, name).default._schema.arguments if a.is_write]
        for name in ("gather_scale", "gather_scale_out", "identity_", "channel_moments", "tensor_moments")
    }
    assert {name: arguments for name, arguments in written.items() if arguments} == {
        "gather_scale_out": ["out"],
        "identity_": ["tensors"],
    }
