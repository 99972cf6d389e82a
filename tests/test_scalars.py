"""Arguments that were computed with NumPy mean what the same numbers of Python mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import net2net
import numpy as np
import pytest
import torch
from net2net.scalars import plain
from torch import nn

import n2n_kernels as nk

X = (torch.ones(1, 3, 12, 12),)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def test_plain() -> None:
    given = {"a": np.float32(0.5), "b": [np.int64(3), (np.bool_(True), "c", None)]}
    made = plain(given)
    assert made == {"a": 0.5, "b": [3, (True, "c", None)]}
    assert [type(made["a"]), type(made["b"][0]), type(made["b"][1][0])] == [float, int, bool]
    assert plain(np.array([3, 5])) == (3, 5)
    assert type(plain(np.array(3))) is int
    tensor = torch.zeros(2)
    assert plain(tensor) is tensor


@pytest.mark.parametrize(
    ("plan", "given"),
    [
        (net2net.plan_widen, {"width": 1.5}),
        (net2net.plan_widen, {"width": {"0": 12}, "noise_scale": 0.25, "multiple_of": 4, "seed": 3}),
        (net2net.plan_widen, {"width": {"0": 1.5}, "seed": 2**62}),
        (net2net.plan_deepen, {"count": 2, "seed": 5, "kernel_size": 5}),
        (net2net.plan_deepen, {"kernel_size": [(3, 5)], "method": "maxout", "pieces": 3}),
        (net2net.plan_deepen, {"kernel_size": [3, 5], "count": 3}),
        (net2net.plan_deepen, {"kernel_size": torch.Size([3, 5])}),
        (net2net.plan_kernels, {"sizes": {"0": 5}}),
        (net2net.plan_kernels, {"sizes": {"0": (3, 5)}}),
    ],
)
def test_a_plan_of_numpy_numbers_is_the_same(plan: Callable[..., Any], given: dict[str, Any], tmp_path: Path) -> None:
    def numpy_numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numpy_numbers(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(numpy_numbers, value))
        kinds: dict[type, Callable[[Any], Any]] = {int: np.int64, float: np.float32}
        return kinds[type(value)](value) if type(value) in kinds else value

    teacher = model()
    files = []
    for arguments in (given, numpy_numbers(given)):
        file = tmp_path / f"{len(files)}.json"
        plan(teacher, X, **arguments).save(file)
        files.append(file.read_bytes())
    assert files[0] == files[1]


def test_sizes_as_an_array() -> None:
    student = net2net.enlarge_kernels(model(), X, {"0": np.array([5, 3])})  # type: ignore[dict-item]
    assert tuple(student.get_submodule("0").weight.shape) == (8, 3, 5, 3)


@pytest.mark.parametrize("size", [5.0, np.array([[5]]), "5", None], ids=repr)
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(ValueError, match=r"sizes\['0'\]"):
        net2net.plan_kernels(model(), X, {"0": size})


@pytest.mark.parametrize("wrong", [np.bool_(True), True])
def test_booleans_are_no_numbers(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"width \(=True\)"):
        net2net.plan_widen(model(), X, wrong)
    for name in ("multiple_of", "seed"):
        with pytest.raises((TypeError, ValueError), match=rf"{name} \(=True\)"):
            net2net.plan_widen(model(), X, 2, **{name: wrong})
    for name in ("count", "seed", "kernel_size", "pieces"):
        with pytest.raises(ValueError, match=rf"{name} \(=True\)"):
            net2net.plan_deepen(model(), X, **{name: wrong})
    with pytest.raises(TypeError, match=r"noise_std \(=(np\.)?True_?\)"):
        nk.gather_scale([torch.ones(2, 2)], None, None, noise_std=wrong, backend="cpu")
