"""The optimizer's part of growing a sharded network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from net2net import optimizer as optim
from net2net.dynamics import KEY, GrownAxis
from net2net.launches import Entry
from net2net.plan import GrowthPlan
from net2net.sharded.shard_growth import grow_shard
from net2net.shards import Spread, like, local
from net2net.skeleton import Tensors
from net2net.spent import check_not_spent


class OptimizerGrowth:
    """What becomes of an optimizer over sharded parameters. All that can be refused is refused when it is made.

    Args:
        tensors: of the sharded teacher.
        state: see `GrowthPlan.grow_optimizer`.
    """

    def __init__(self, plan: GrowthPlan, optimizer: Optimizer, tensors: Tensors, state: str) -> None:
        check_not_spent("optimizer", optimizer)
        if any(KEY in group for group in optimizer.param_groups):
            raise TypeError("optimizer keeps its teacher's dynamics, which cannot be carried along where it is sharded")
        self._plan, self._optimizer, self._state = plan, optimizer, state
        known = {p: name for name, p in tensors.parameters.items() if name not in tensors.aliases}
        self._names: dict[Tensor, str] = {}
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                if p not in known:
                    raise ValueError(
                        f"optimizer.param_groups[{index}] holds a parameter of shape {tuple(p.shape)} that is not one "
                        "of model"
                    )
                self._names[p] = known[p]
        laws = optim.laws_for(optimizer)
        self._moving = optim.state_tensors(optimizer, self._names, laws, plan.shapes)
        for m in self._moving:
            if Spread.of(m.key, m.value) != Spread.of(self._names[m.parameter], m.parameter):
                raise TypeError(f"optimizer has state {m.key!r} that is not sharded as {self._names[m.parameter]} is")
        if state == "reset":
            self._moving = []

    def carry_out(self, student: Tensors) -> Optimizer:
        """The student's optimizer. To be called by all ranks alike."""
        plan, optimizer, names = self._plan, self._optimizer, self._names
        replaced = {p: student.parameters[plan._renamed(name)] for p, name in names.items()}
        values = []
        for m in self._moving:
            value = like(replaced[m.parameter], m.value.dtype)
            grow_shard(plan, Entry(names[m.parameter], m.power), m.value, value, key=m.key)
            values.append(value)
        fresh = plan._joining(names, student.parameters)
        grown = optim.rebuild(optimizer, replaced, self._moving, values, fresh, reset=self._state == "reset")
        if self._state == "replicas_reset":
            for m, value in zip(self._moving, values, strict=True):
                optim.reset_replicas(m, local(value), self._axes(m.parameter))
        optim.mend_normalised(grown, replaced, self._axes)
        plan._put_in_order(optimizer, grown, names, student.parameters)
        return grown

    def _axes(self, p: Tensor) -> Sequence[GrownAxis]:
        """The axes that grow, with this rank's positions of the sharded one."""
        name = self._names[p]
        spread = Spread.of(name, p)
        return [
            axis.part(*spread.bounds(len(axis.index))) if axis.dim == spread.dim else axis
            for axis in self._plan._grown_axes(name)
        ]
