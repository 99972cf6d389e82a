"""Triton's interpreter checks assertions. One says that vectors are where the compiler is told that they are."""

import os

import pytest
import torch

import n2n_kernels as nk

if os.environ.get("TRITON_INTERPRET") != "1" or nk.backends()["triton"] is not None:
    pytest.skip("Triton is not interpreted here", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def asserting(x):
    tl.device_assert(tl.load(x) == 1, "not one")


def test_what_is_asserted_is_checked() -> None:
    asserting[(1,)](torch.ones(1))
    with pytest.raises(Exception, match="not one"):
        asserting[(1,)](torch.zeros(1))
