"""The memory that interpreted PTX (ptx.py) works on: the process's own, and a block's shared memory.

An access that is not within the regions that a launch names is an error, and so is a race: between two barriers no
thread may read or write what another has written, nor write what another has read.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

#: Which threads an instruction is for.
Threads = np.ndarray
#: Where shared memory begins: not at 0, so that an address is not taken for an offset.
SHARED_BEGIN = 1024


class PtxMemoryError(Exception):
    """An access outside the regions, a misaligned one, or a race."""


@dataclass
class Region:
    """Memory of the process that a kernel may use. `writes` counts, for each byte, how often it was written."""

    name: str
    address: int
    size: int
    writable: bool = False
    bytes: np.ndarray = field(init=False, repr=False)
    writes: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.bytes = np.frombuffer((ctypes.c_uint8 * self.size).from_address(self.address), np.uint8)
        self.writes = np.zeros(self.size if self.writable else 0, np.uint8)


class GlobalMemory:
    def __init__(self, regions: list[Region]) -> None:
        self.regions = sorted((r for r in regions if r.size), key=lambda r: r.address)
        self._starts = np.array([r.address for r in self.regions], np.uint64)

    def _places(self, addresses: np.ndarray, size: int, what: str) -> Iterator[tuple[Region, np.ndarray, np.ndarray]]:
        """Region, which of the addresses lie in it, and the places of their bytes [n, size]."""
        number = np.searchsorted(self._starts, addresses, side="right") - 1
        for n in np.unique(number):
            which = np.flatnonzero(number == n)
            region = self.regions[max(n, 0)]
            offset = addresses[which].astype(np.int64) - region.address
            if n < 0 or offset.max() + size > region.size:
                raise PtxMemoryError(
                    f"{what} of {size} bytes at {addresses[which[offset.argmax()]]:#x}: nothing is there"
                )
            yield region, which, offset[:, None] + np.arange(size)

    def load(self, addresses: np.ndarray, size: int, constant: bool) -> np.ndarray:
        out = np.empty((len(addresses), size), np.uint8)
        for region, which, places in self._places(addresses, size, "load"):
            if constant and region.writable:
                raise PtxMemoryError(f"{region.name} is read as constant, and written")
            out[which] = region.bytes[places]
        return out

    def store(self, addresses: np.ndarray, data: np.ndarray) -> None:
        for region, which, places in self._places(addresses, data.shape[1], "store"):
            if not region.writable:
                raise PtxMemoryError(f"{region.name} must not be written")
            region.bytes[places] = data[which]
            np.add.at(region.writes, places, 1)


class SharedMemory:
    """A block's, and who has used what since the last barrier."""

    def __init__(self, size: int) -> None:
        # Numbers that are finite: for others the kernels have ways that read the tensor instead.
        self.bytes = np.full(size, 0x5A, np.uint8)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.barrier()

    def barrier(self) -> None:
        size = len(self.bytes)
        self._writer = np.full(size, -1, np.int32)
        self._first_reader = np.full(size, 1 << 30, np.int32)
        self._last_reader = np.full(size, -1, np.int32)

    def _places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        places = addresses.astype(np.int64)[:, None] - SHARED_BEGIN + np.arange(size)
        if places.min() < 0 or places.max() >= len(self.bytes):
            raise PtxMemoryError(f"shared memory has {len(self.bytes)} bytes; byte {places.max()} is asked for")
        return places

    def load(self, threads: Threads, addresses: np.ndarray, size: int) -> np.ndarray:
        places, by = self._places(addresses, size), threads[:, None]
        writer = self._writer[places]
        if ((writer != -1) & (writer != by)).any():
            raise PtxMemoryError("race: a thread reads what another has written since the last barrier")
        np.minimum.at(self._first_reader, places, by)
        np.maximum.at(self._last_reader, places, by)
        return self.bytes[places]

    def store(self, threads: Threads, addresses: np.ndarray, data: np.ndarray) -> None:
        places, by = self._places(addresses, data.shape[1]), threads[:, None]
        writer, last = self._writer[places], self._last_reader[places]
        read = (last != -1) & ((last != by) | (self._first_reader[places] != by))
        if ((writer != -1) & (writer != by)).any() or read.any():
            raise PtxMemoryError("race: a thread writes what another has used since the last barrier")
        self._writer[places] = by
        if (self._writer[places] != by).any():
            raise PtxMemoryError("race: two threads write the same byte")
        self.bytes[places] = data

    def add_bits(self, addresses: np.ndarray, bits: np.ndarray) -> None:
        np.bitwise_or.at(self.bytes.view(np.uint32), self._places(addresses, 4)[:, 0] // 4, bits)

    def copy_later(self, threads: Threads, addresses: np.ndarray, data: np.ndarray) -> None:
        self._pending.append((threads, addresses, data))

    def wait(self, threads: Threads) -> None:
        left = []
        for those, addresses, data in self._pending:
            now = np.isin(those, threads)
            if now.any():
                self.store(those[now], addresses[now], data[now])
            if not now.all():
                left.append((those[~now], addresses[~now], data[~now]))
        self._pending = left
