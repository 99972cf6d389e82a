"""Growing sharded and data-parallel networks in a run: what is refused, what goes along, checkpoints, memory."""

from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import net2net
import pytest
import ranks
import torch
import torch.distributed as dist
from models import EXAMPLES, randomised
from net2net import dynamics
from net2net.shards import is_sharded, local
from net2net.skeleton import Tensors
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, Optimizer

if not dist.is_available():
    pytest.skip("torch is built without distributed training", allow_module_level=True)

import torch.distributed.checkpoint as dcp
from sharding import (
    assert_shards,
    mesh_of,
    mlp_even,
    optimizer_of,
    sharded_copy,
    sharded_optimizer,
    sharder,
    state_of,
    with_state,
)
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard


def refusals(rank: int) -> None:
    shard = sharder(mesh_of())
    teacher, x = EXAMPLES["plain_2d"].build()
    plan = net2net.plan_widen(teacher, x, 1.5)
    model, build = sharded_copy(teacher, shard), EXAMPLES["plain_2d"].make
    options: dict[str, Any] = {"build": build, "wrap": shard}
    with pytest.raises(ValueError, match=r"model \(=FSDPSequential\) is sharded by FSDP: .* by net2net.grow_sharded"):
        plan.apply(model)
    with pytest.raises(ValueError, match=r"model \(=Sequential\) is not sharded: use plan.apply"):
        net2net.grow_sharded(teacher, plan, **options)
    with pytest.raises(TypeError, match=r"plan \(=float\) must be a GrowthPlan"):
        net2net.grow_sharded(model, 1.5, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"state \(='all'\) must be one of"):
        net2net.grow_sharded(model, plan, **options, state="all")
    with pytest.raises(ValueError, match=r"what build\(\) makes is not the unsharded teacher: model has no 1.bias"):
        net2net.grow_sharded(model, plan, build=mlp_even, wrap=shard)
    with pytest.raises(ValueError, match=r"what build\(\) makes is not the unsharded teacher: .* is sharded by FSDP"):
        net2net.grow_sharded(model, plan, build=lambda: sharded_copy(teacher, shard), wrap=shard)
    with pytest.raises(ValueError, match=r"wrap\(\) shards 0.weight along axis None over 1 ranks, but in model"):
        net2net.grow_sharded(model, plan, build=build, wrap=lambda student: student)
    with pytest.raises(ValueError, match=r"optimizer.param_groups\[0\] holds a parameter of shape \(6, 3, 3, 3\) that"):
        net2net.grow_sharded(model, plan, **options, optimizer=SGD(teacher.parameters()))
    with pytest.raises(TypeError, match=r"optimizer \(=torch.optim.lbfgs.LBFGS\) has state whose law"):
        net2net.grow_sharded(model, plan, **options, optimizer=torch.optim.LBFGS(model.parameters()))
    grown = net2net.grow(teacher, x, widen=2, optimizer=SGD(teacher.parameters()), lr="dynamics")
    assert grown.optimizer is not None
    steered = SGD(model.parameters())
    steered.param_groups[0][dynamics.KEY] = grown.optimizer.param_groups[0][dynamics.KEY]
    with pytest.raises(TypeError, match="optimizer keeps its teacher's dynamics"):
        net2net.grow_sharded(model, plan, **options, optimizer=steered)
    other = net2net.plan_widen(EXAMPLES["mlp"].build()[0], EXAMPLES["mlp"].build()[1], 2)
    with pytest.raises(ValueError, match="model has no"):
        net2net.grow_sharded(model, other, **options)


def planned_without_weights(rank: int) -> None:
    """A plan that each rank makes by itself on the meta device is the one that the whole network gives."""
    example = EXAMPLES["residual"]
    teacher, x = example.build()
    with torch.device("meta"):
        shapes = example.make().double().eval()
    mine = net2net.plan_widen(shapes, x.to("meta"), 1.5, seed=3)
    whole = net2net.plan_widen(teacher, x, 1.5, seed=3)
    assert mine.axes.keys() == whole.axes.keys()
    for key, axis in mine.axes.items():
        assert (axis.index == whole.axes[key].index).all()
        assert (axis.share == whole.axes[key].share).all()


class Odd(nn.Module):
    """With buffers of every kind: that grow, that are not saved, that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.register_buffer("gain", torch.ones(6), persistent=False)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu() * self.gain) * self.frozen


def odd_parts(rank: int) -> None:
    """Buffers, what is in train mode, and what is not trained; a parameter that is not sharded."""
    model = randomised(Odd()).double()
    with torch.no_grad():
        model.steps.add_(41 + rank)  # each rank has its own
        model.norm.running_mean.add_(rank)
    model.train()
    model.norm.eval()
    mesh = mesh_of()

    def shard(m: nn.Module) -> None:
        fully_shard(m, mesh=mesh, ignored_params={m.get_parameter("last.bias")})

    plan = net2net.plan_widen(model, torch.randn(4, 5, dtype=torch.float64), 2)
    expected = plan.apply(model)
    shard(model)
    student, nothing = net2net.grow_sharded(model, plan, build=Odd, wrap=shard)
    assert nothing is None
    assert_shards(Tensors.of(student).by_name, Tensors.of(expected).by_name)
    assert not is_sharded(student.get_parameter("last.bias"))
    assert [m.training for m in student.modules()] == [m.training for m in expected.modules()]
    assert {n: p.requires_grad for n, p in student.named_parameters()} == {
        n: p.requires_grad for n, p in expected.named_parameters()
    }
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(student(x), expected(x), rtol=1e-12, atol=1e-12)
    again, _ = net2net.grow_sharded(
        student, net2net.plan_widen(expected, x, 2), build=lambda: plan.apply(Odd()), wrap=shard
    )
    again(x).sum().backward()


def quick(rank: int) -> None:
    refusals(rank)
    planned_without_weights(rank)
    odd_parts(rank)


def test_what_is_refused_and_what_goes_along(processes: ForkServerContext) -> None:
    ranks.run(processes, 2, quick)


def save(rank: int, folder: str) -> dict[str, Tensor]:
    """Grown on these ranks and saved; what growing the whole network gives."""
    teacher, x = EXAMPLES["residual"].build()
    plan = net2net.plan_widen(teacher, x, 1.5)
    if rank == 0:
        plan.save(f"{folder}/growth.json")
    shard = sharder(mesh_of())
    mine = sharded_copy(teacher, shard)
    optimizer = with_state("adam", teacher)
    my_optimizer = sharded_optimizer("adam", optimizer, teacher, mine)
    student, grown = net2net.grow_sharded(
        mine, plan, build=EXAMPLES["residual"].make, wrap=shard, optimizer=my_optimizer
    )
    model_state, optimizer_state = get_state_dict(student, grown)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=f"{folder}/checkpoint")
    whole = plan.apply(teacher)
    its = plan.grow_optimizer(optimizer, whole)
    return {**whole.state_dict(), **state_of(its, whole)} if rank == 0 else {}


def load(rank: int, folder: str, expected: dict[str, Tensor]) -> None:
    """Loaded into a network that is made anew, on another number of ranks."""
    plan = net2net.GrowthPlan.load(f"{folder}/growth.json")
    shard = sharder(mesh_of())
    model = shard(plan.apply(EXAMPLES["residual"].build(seed=1)[0]))
    optimizer = optimizer_of("adam", model)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    held = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(held, checkpoint_id=f"{folder}/checkpoint")
    set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    assert_shards({**model.state_dict(), **state_of(optimizer, model)}, expected)


@pytest.mark.slow
def test_a_checkpoint_of_four_ranks_is_loaded_by_fewer(processes: ForkServerContext, tmp_path: Path) -> None:
    expected = ranks.run(processes, 4, save, str(tmp_path))[0]
    for number in (1, 2, 3):
        ranks.run(processes, number, load, str(tmp_path), expected)


def data_parallel(rank: int) -> dict[str, Tensor]:
    """What is done with DistributedDataParallel: its module is grown, and wrapped again."""
    model, x = EXAMPLES["residual"].build()
    parallel = DistributedDataParallel(model.train())
    optimizer = Adam(parallel.parameters(), lr=0.01)
    mine = x + rank

    def step(parallel: nn.Module, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        parallel(mine).square().mean().backward()
        optimizer.step()

    step(parallel, optimizer)
    grown = net2net.grow(parallel.module, x, widen=1.5, deepen=True, optimizer=optimizer)
    assert grown.optimizer is not None
    parallel = DistributedDataParallel(grown.model)
    step(parallel, grown.optimizer)
    step(parallel, grown.optimizer)
    return dict(grown.model.state_dict())


def test_data_parallel_is_grown_and_wrapped_again(processes: ForkServerContext) -> None:
    one, two = ranks.run(processes, 2, data_parallel)
    for name in one:
        assert "running" in name or torch.equal(one[name], two[name]), name
    torch.manual_seed(0)
    assert not torch.equal(one["stem.weight"], EXAMPLES["residual"].build()[0].state_dict()["stem.weight"])


def wide(features: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, features, bias=False), nn.ReLU(), nn.Linear(features, features, bias=False)
    )


def peak(rank: int, features: int, along: int, noise: str, adam: bool) -> tuple[float, float]:
    """MiB: this rank's shards of the student and of its optimizer, and the most memory that growing took, these
    included."""
    shard = sharder(mesh_of(), along)
    with torch.device("meta"):
        whole, x = wide(features), torch.empty(1, features)
    plan = net2net.plan_widen(whole, x, 1.5, layers="0", noise=noise)
    model = shard(whole).to_empty(device="cpu")
    for p in model.parameters():
        local(p).normal_()
    optimizer = Adam(model.parameters()) if adam else None
    if optimizer is not None:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory("VmRSS")
    student, grown = net2net.grow_sharded(model, plan, build=lambda: wide(features), wrap=shard, optimizer=optimizer)
    extra = memory("VmHWM") - before
    state = [v for entries in grown.state.values() for v in entries.values()] if grown is not None else []
    made = [*student.parameters(), *(v for v in state if v.dim())]
    return sum(local(t).nbytes for t in made) / 2**20, extra


def memory(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is measured by Linux")
@pytest.mark.parametrize("case", [(0, "cancelling", True), (0, "paper", False), (1, "cancelling", False)], ids=str)
def test_memory(processes: ForkServerContext, case: tuple[int, str, bool]) -> None:
    """Two tensors that grow from 64 to 96 MiB, in four shards: at most twice the new shards at any time."""
    for shards, extra in ranks.run(processes, 4, peak, 4096, *case):
        assert shards == pytest.approx(144 if case[2] else 48, rel=0.01)
        assert shards * 0.9 < extra < 2 * shards
