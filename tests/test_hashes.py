"""hashes: the table against a dictionary, and what `digest` tells apart."""

import numpy as np
from net2net.hashes import Table, digest


def test_table_is_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    table, known, numbered = Table(), dict[int, int](), 7

    def add(count: int) -> int:
        nonlocal numbered
        first, numbered = numbered, numbered + count + 5  # others are numbered in between
        return first

    for _ in range(12):
        hashes = rng.integers(0, 2**63, rng.integers(0, 3000), dtype=np.uint64)
        hashes[::50] &= np.uint64(2**40 - 2**15)  # some that want the same slot
        old = np.array(list(known), dtype=np.uint64)
        some = rng.choice(old, min(len(old), 500)) if len(old) else old
        asked = rng.permutation(np.concatenate([hashes, hashes[:100], some]))
        first = numbered
        got = table.numbers(asked, add).tolist()
        fresh = [h for h in dict.fromkeys(asked.tolist()) if h not in known]
        for h, number in zip(asked.tolist(), got, strict=True):
            assert known.setdefault(h, number) == number
        assert sorted(known[h] for h in fresh) == list(range(first, first + len(fresh)))
    every = np.array(list(known), dtype=np.uint64)
    assert table.numbers(every, add).tolist() == list(known.values())


def test_digest_tells_shapes_and_places_apart() -> None:
    x = np.arange(6)
    seen = [
        digest("a", x), digest("b", x), digest("a", x, x), digest("a", x.reshape(2, 3)),
        digest("a", x.reshape(3, 2)), digest("a", x[::-1]), digest("a"),
    ]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert digest("a", x) == digest("a", np.arange(12)[::2] // 2)
