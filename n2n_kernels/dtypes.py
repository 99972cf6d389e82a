"""The one table of supported dtypes: what each is called in the kernels, and what it computes in."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class DType:
    """A storage type of the kernels.

    `code` is `n2n::DType` of `csrc/common.h`; `compute` is the type in which its arithmetic is done, rounded to storage
    once at the end; `quiet_nan` is the bit pattern written where arithmetic makes a NaN; `bits` is the integer dtype of
    the same size.
    """

    code: int
    storage: torch.dtype
    compute: torch.dtype
    compute_numpy: type[np.floating]
    bits: torch.dtype
    quiet_nan: int


TABLE: dict[torch.dtype, DType] = {
    d.storage: d
    for d in (
        DType(0, torch.float32, torch.float32, np.float32, torch.int32, 0x7FC00000),
        DType(1, torch.float64, torch.float64, np.float64, torch.int64, 0x7FF8000000000000),
        DType(2, torch.bfloat16, torch.float32, np.float32, torch.int16, 0x7FC0),
        DType(3, torch.float16, torch.float32, np.float32, torch.int16, 0x7E00),
    )
}

NAMES = ", ".join(str(d).removeprefix("torch.") for d in TABLE)
