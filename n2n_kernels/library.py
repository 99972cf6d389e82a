"""The operators' registration: `torch.ops.n2n.*`, so that `opcheck` passes and torch.compile can see through them."""

import torch

LIBRARY = torch.library.Library("n2n", "DEF")
