"""How the elements of a channel are cut for summation: a part of the definition (`csrc/channel_moments.h`)."""

#: Partial sums of a chunk, and of the chunks of a channel; `n2n::kLanes` and `n2n::kFoldLanes`.
LANES, FOLD_LANES = 32, 256


def _power_of_two(n: int) -> int:
    """The least power of two that is not below n (and not below 1)."""
    return 1 << max(n - 1, 0).bit_length()


def chunk_of(elements: int) -> int:
    """Elements per chunk, for a channel of so many.

    About 64 chunks per channel, so that few channels occupy a whole GPU too; but not so small that their sums are a
    notable part of the traffic, and never so many that their summation takes long.
    """
    wanted = min(max(_power_of_two(-(-elements // 64)), 256), 1024)
    return max(wanted, _power_of_two(-(-elements // 16384)))
