"""hashes: the table against a dictionary, and what `digest` tells apart."""

import numpy as np
from net2net.hashes import Table, digest


def test_table_is_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    table, known = Table(), dict[int, int]()
    for _ in range(12):
        hashes = rng.integers(0, 2**63, rng.integers(0, 3000), dtype=np.uint64)
        hashes[::50] &= np.uint64(2**40 - 2**15)  # some that want the same slot
        hashes = np.setdiff1d(hashes, np.array(list(known), dtype=np.uint64))
        numbers = np.arange(len(known), len(known) + len(hashes))
        assert (table.get(hashes) == -1).all()
        table.add(hashes, numbers)
        known.update(zip(hashes.tolist(), numbers.tolist(), strict=True))
        asked = rng.permutation(np.array(list(known), dtype=np.uint64))
        assert table.get(asked).tolist() == [known[h] for h in asked.tolist()]


def test_digest_tells_shapes_and_places_apart() -> None:
    x = np.arange(6)
    seen = [
        digest("a", x), digest("b", x), digest("a", x, x), digest("a", x.reshape(2, 3)),
        digest("a", x.reshape(3, 2)), digest("a", x[::-1]), digest("a"),
    ]  # fmt: skip
    assert len(set(seen)) == len(seen)
    assert digest("a", x) == digest("a", np.arange(12)[::2] // 2)
