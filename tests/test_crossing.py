"""Noise on weights that are stored [in, out]: transposed convolutions, matrices behind their inputs."""

import copy

import net2net
import pytest
import torch
from models import EXAMPLES
from net2net.crossing import add_noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 5), (7, 2, 3), (7, 4, 2, 2)])
def test_noise_sums_to_zero_over_the_replicas_of_each_input(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    index = torch.tensor([0, 1, 2, 3, 1, 1, 3])
    noise = torch.zeros(shape, dtype=dtype)
    add_noise(noise, index, 0.5, seed=3, tensor_id=2)
    assert (noise[[0, 2]] == 0).all()
    assert (noise[[1, 3, 4, 5, 6]] != 0).all()
    sums = torch.zeros(4, *shape[1:], dtype=dtype).index_add(0, index, noise)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-15)
    assert 0.3 < noise[[1, 3, 4, 5, 6]].std() < 1.2
    again = torch.zeros(shape, dtype=dtype)
    add_noise(again, index, 0.5, seed=4, tensor_id=2)
    assert (again != noise)[1].all()


def test_a_part_has_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    index = torch.tensor([0, 1, 2, 3, 4, 2, 2, 0, 4])
    whole = torch.zeros(9, 4, 3)
    add_noise(whole, index, 0.5, seed=3, tensor_id=2)
    monkeypatch.setattr("net2net.crossing._PIECE", (20, 20))
    part = torch.zeros(3, 2, 3)
    add_noise(part, index, 0.5, seed=3, tensor_id=2, begin=4, first=1)
    assert torch.equal(part, whole[4:7, 1:3])


@pytest.mark.parametrize("width", [1.5, 2, 3])
def test_replicas_learn_apart_with_adam(width: float) -> None:
    """Its steps do not depend on a gradient's size, so that shares alone would not tell replicas apart."""
    model, x = EXAMPLES["crosswise"].build()
    plan = net2net.plan_widen(model, x, width)
    student = plan.apply(model)
    assert net2net.verify(model, student, x).max_rel < 1e-13
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        student(x).square().mean().backward()
        optimizer.step()
    for rows in (student.stem.weight.flatten(1), student.up.weight.transpose(0, 1).flatten(1), student.into.T):
        assert (torch.pdist(rows) > 1e-4).all()


def test_channels_last_and_narrow_dtypes() -> None:
    model, x = EXAMPLES["crosswise"].build(torch.float32)
    expected = dict(net2net.plan_widen(model, x, 1.5).apply(model).named_parameters())
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for name, p in net2net.plan_widen(other, x, 1.5).apply(other).named_parameters():
        assert torch.equal(p, expected[name])
    half = copy.deepcopy(model).bfloat16()
    assert net2net.verify(half, net2net.widen(half, x.bfloat16(), 1.5), x.bfloat16()).ok


def test_used_up_teachers_and_state_dicts() -> None:
    model, x = EXAMPLES["crosswise"].build()
    plan = net2net.plan_widen(model, x, 1.5)
    expected = plan.apply(model).state_dict()
    for way in (plan.grow_state_dict(model.state_dict()), plan.apply(model, consume=True).state_dict()):
        assert all(torch.equal(way[name], t) for name, t in expected.items())


def test_no_noise_where_none_is_wanted() -> None:
    model, x = EXAMPLES["crosswise"].build()
    student = net2net.plan_widen(model, x, 2, noise="none", mapping="balanced").apply(model)
    first, second = student.up.weight[:6], student.up.weight[6:]
    assert {tuple(row.flatten().tolist()) for row in first} == {tuple(row.flatten().tolist()) for row in second}
