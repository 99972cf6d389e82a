"""What the memory gives, measured in the same run: one roofline for each mix of reads and writes among the cases.

Memory reads and writes at different speeds, and turning from one to the other costs too, so a kernel that writes four
bytes for each that it reads is not to be measured with a copy. The roofline of such a mix *is run*: the bytes read are
copied, and the further bytes written are set. That is one pass over memory, without an index, by the fastest streaming
operations at hand, and every byte of the mix is moved once and counted once.

What was tried instead: a `copy_` that broadcasts its source into several places reads it once too, but is slower (its
source is indexed), which would flatter the kernels. Adding the times of pure reads and of pure writes is a model, not a
measurement, and leaves the turning out; it can be had from the rows of the `sum` and the `memset`.
"""

import ctypes
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

#: Bytes moved by one call, far more than a cache, and enough to hide the launches.
GPU_BYTES, CPU_BYTES = 6 * 2**30, 768 * 2**20


@dataclass(frozen=True)
class Roofline:
    """A mix: of `read + written` bytes, that many are read and written. Made by `roofline_of`."""

    read: float
    written: float

    @property
    def name(self) -> str:
        if self.written == 0:
            return "sum, read only"
        if self.read == 0:
            return "memset, write only"
        return "copy_, 1:1" if self.read == self.written else f"copy_ and memset, 1:{self.written:.2f}"

    def contender(self, device: torch.device) -> Iterator[Callable[[], object]]:
        """The one call, on buffers whose pages exist."""
        source, target = (torch.zeros(count, device=device) for count in self._elements(device))
        if self.written == 0:
            yield partial(torch.sum, source)
            return
        copied, rest = target[: source.numel()], target[source.numel() :]

        def call() -> None:
            if copied.numel():
                copied.copy_(source)
            if rest.numel():
                memset(rest)

        yield call

    def bytes(self, device: torch.device) -> tuple[int, int]:
        """(read, written) of a call."""
        read, written = self._elements(device)
        return 4 * read, 4 * written

    def _elements(self, device: torch.device) -> tuple[int, int]:
        """float32 numbers that a call reads, and that it writes."""
        unit = (GPU_BYTES if device.type == "cuda" else CPU_BYTES) / (self.read + self.written) / 4
        return math.ceil(self.read * unit), math.ceil(self.written * unit)


def roofline_of(read: int, written: int) -> Roofline:
    """The roofline for these numbers of bytes; mixes that differ by less than a hundredth have the same."""
    if read == 0 or written == 0:
        return Roofline(float(read > 0), float(written > 0))
    return Roofline(1.0, max(1.0, round(written / read, 2)))


#: Shown in every table, whatever the cases.
ALWAYS = (Roofline(1.0, 1.0), Roofline(1.0, 0.0), Roofline(0.0, 1.0))


def memset(t: Tensor) -> None:
    """The fastest way to write `t`, which is contiguous. On a CPU that is the C library's, on as many threads as torch
    has: twice as fast as `zero_`, since it writes past the caches and need not read what it overwrites."""
    if t.is_cuda:
        t.zero_()
        return
    threads = torch.get_num_threads()
    part = math.ceil(t.nbytes / threads)
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, t.nbytes, part):
            pool.submit(ctypes.memset, t.data_ptr() + begin, 0, min(part, t.nbytes - begin))
