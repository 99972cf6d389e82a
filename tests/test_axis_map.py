"""What gather_scale finds out about a map, held against plain Python."""

import itertools

import numpy as np
import pytest
import torch

from n2n_kernels.ops.gather_scale.request import AxisMap


@pytest.mark.parametrize("units", [1, 7, 2**16, 2**16 + 3], ids=str)
def test_what_a_map_says_of_replicas(units: int) -> None:
    """In plain Python; units of more and of fewer than 16 bits are sorted in different ways."""
    generator = torch.Generator().manual_seed(units)
    index = torch.cat([torch.arange(units), torch.randint(0, units, (units // 2 + 3,), generator=generator)])
    index = index[torch.randperm(len(index), generator=generator)].numpy()
    check(index, units)


@pytest.mark.parametrize(("index", "units"), [([], 0), ([7] * 70_000 + list(range(9)), 9)], ids=["empty", "one unit"])
def test_what_a_map_of_one_kind_says(index: list[int], units: int) -> None:
    check(np.array(index, dtype=np.int64), units)


def check(index: np.ndarray, units: int) -> None:
    axis = AxisMap(index)
    replicas: dict[int, list[int]] = {unit: [] for unit in range(units)}
    order = []
    for place, unit in enumerate(index.tolist()):
        order.append(len(replicas[unit]))
        replicas[unit].append(place)
    assert axis.by_unit.tolist() == [place for unit in range(units) for place in replicas[unit]]
    assert axis.count.tolist() == list(map(len, replicas.values()))
    assert axis.begins.tolist() == [0, *itertools.accumulate(map(len, replicas.values()))]
    assert axis.order.tolist() == order
    assert axis.seen.tolist() == [n > 0 for n in order]
    most_first = sorted(range(units), key=lambda unit: -len(replicas[unit]))
    assert axis.units.tolist() == [[u, replicas[u][0], replicas[u][-1], len(replicas[u])] for u in most_first]


@pytest.mark.parametrize(
    ("index", "prefix"), [([], 0), ([0], 1), ([1], 0), ([0, 1, 2], 3), ([0, 1, 1, 3], 2), ([0, 1, 2, 2], 3)], ids=str
)
def test_the_prefix_that_leads_to_itself(index: list[int], prefix: int) -> None:
    assert AxisMap(np.array(index, dtype=np.int64)).prefix == prefix
