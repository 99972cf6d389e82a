"""GrowthPlan: a whole growth step as data. It can be looked at, saved, and replayed on weights, optimizer state and
state dicts.

The kinds of plan, `WidenPlan`, `DeepenPlan` and `KernelPlan`, say what becomes of each tensor; what is common, from
checking that a model fits to carrying an optimizer along, is here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from n2n_kernels import tensor_moments
from net2net import optimizer as optim
from net2net import plan_fields
from net2net.chunks import Part, cut, hand_over, placeholder
from net2net.crossing import add_noise
from net2net.dynamics import GrownAxis, carry, check_dynamics
from net2net.files import write_atomically
from net2net.launches import Entry, Launches, Law, Prepared, run
from net2net.plan_parts import Copy, Fresh, Inventory, Skipped
from net2net.skeleton import Tensors, check_model, in_place_of, movable, rebuild
from net2net.spent import check_not_spent, one_consumer_at_a_time, spend
from net2net.tree import no_collections

if TYPE_CHECKING:
    from net2net.checkpoints.steps import CheckpointReport

FORMAT = "net2net.GrowthPlan"
VERSION = 1

#: What reading a document raises where its parts are of other types than a plan's.
_DAMAGE = LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError, MemoryError


class _Students(WeakKeyDictionary[nn.Module, dict[int, tuple["ref[Tensor]", str]]]):
    """Per student, its teacher's parameters: how an optimizer's parameters are recognised later. Weak on both sides,
    and of this process: a plan is pickled without."""

    def __reduce__(self) -> tuple[type[_Students], tuple[()]]:
        return _Students, ()


class GrowthPlan(ABC):
    """One growth step. Make one with `plan_widen`, `plan_deepen` or `plan_kernels`, or load one.

    Attributes:
        skipped: what was left alone, with reasons.
        shapes: name -> shape of every parameter and buffer of the teacher.
    """

    kind: ClassVar[str]

    #: Which noise `_noise_stds` is of, and its seed.
    _noise = "replicas"
    _seed = 0

    _kinds: ClassVar[dict[str, type[GrowthPlan]]] = {}

    def __init__(self, inventory: Inventory, skipped: list[Skipped]) -> None:
        self.inventory = inventory
        self.shapes = inventory.shapes
        self.skipped = skipped
        self._teachers = _Students()
        self._launches = Launches()
        self._ids = {name: i for i, name in enumerate(self.shapes)}

    def __init_subclass__(cls) -> None:
        GrowthPlan._kinds[cls.kind] = cls

    # -- what each kind of plan defines ------------------------------------------------------------------------------

    @abstractmethod
    def summary(self) -> str:
        """The plan as a table to read."""

    @abstractmethod
    def student_shape(self, name: str) -> tuple[int, ...]:
        """The student's shape of a teacher tensor."""

    def _numbers(self) -> int:
        """So many numbers the student has, or somewhat more."""
        return sum(math.prod(self.student_shape(name)) for name in self.shapes)

    @abstractmethod
    def _law(self, entry: Entry) -> Law:
        """What becomes of a tensor, or of the optimizer's state of it."""

    def _grown_axes(self, name: str) -> list[GrownAxis]:
        """The axes of a teacher tensor on which units get replicas."""
        return []

    def _noise_of(self, name: str) -> float:
        """The noise on a teacher tensor, in units of its standard deviation."""
        return 0.0

    def _noise_stds(self, names: list[str], tensors: list[Tensor]) -> Tensor | float:
        """The standard deviation of the noise on each of these teacher tensors, float64 on their device; 0.0 for
        none."""
        return 0.0

    def _crossing_noise_of(self, name: str) -> float:
        """The same where it is along the first axis of a teacher tensor, which the kernels do not know."""
        return 0.0

    def _cross(self, stds: Mapping[str, Tensor | float], grown: Mapping[str, Tensor]) -> None:
        """Adds such noise, with these absolute standard deviations, to tensors that the kernels have grown."""
        for name, std in stds.items():
            self._cross_part(name, float(std), grown[name])

    def _cross_part(self, name: str, std: float, part: Tensor, begin: int = 0, first: int = 0) -> None:
        """The same for a part of one tensor: see `crossing.add_noise`."""
        index = next(axis.index for axis in self._grown_axes(name) if axis.dim == 0)
        add_noise(part, index, std, seed=self._seed, tensor_id=self._ids[name], begin=begin, first=first)

    def _crossing_stds(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its standard deviation on these teacher tensors, where there is any."""
        noisy = {name: t for name, t in tensors.items() if self._crossing_noise_of(name) and not t.is_meta}
        if not noisy:
            return {}
        stds = tensor_moments(list(noisy.values()))[1].sqrt()
        return {name: std * self._crossing_noise_of(name) for name, std in zip(noisy, stds, strict=True)}

    @abstractmethod
    def _finish(self, student: nn.Module) -> None:
        """What is left to do on a copy of the teacher that holds the grown tensors, though perhaps not yet their
        values."""

    def _fill(self, student: nn.Module) -> None:  # noqa: B027  (most plans have nothing left to do)
        """What is left to do when the grown tensors have their values."""

    def _fill_shards(self, student: nn.Module) -> None:  # noqa: B027
        """The same for a student whose parameters are sharded; each rank does it for its shards."""

    def _fill_state(self, name: str, state: optim.StateTensor, value: Tensor) -> None:  # noqa: B027
        """The same for `value`, grown from an optimizer's `state` of the teacher's parameter `name`."""

    def _completed(self, name: str, rows: Tensor, key: str | None = None) -> Tensor:
        """What is left to do to rows of the teacher tensor `name`, or of the optimizer's state `key` of it, when they
        have been moved."""
        return rows

    def _mended(self) -> dict[str, tuple[str, ...]]:
        """The student's tensors that are not yet what they should be when they have been moved, and which ones `_mend`
        needs for that, moved."""
        return {}

    def _mend(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Makes them so, in place, as far as all that is needed is there; of the student's `tensors`, by name."""

    @abstractmethod
    def _renamed(self, name: str) -> str:
        """A teacher tensor's name in the student."""

    def _copies(self, names: Iterable[str]) -> dict[str, Copy]:
        """Tensors that only the student has and that are copies of the teacher's, by the student's names, for a teacher
        with these names in its state dict."""
        return {}

    def _fresh(self, tensors: Mapping[str, Tensor]) -> list[Fresh]:
        """The others that only the student has. Of the teacher's `tensors`, dtypes and devices count."""
        return []

    def _new_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All that only the student has, or that is to be put in the place of what has been moved."""
        new = {}
        for name, copied in self._copies(tensors).items():
            t = tensors[copied.of]
            new[name] = torch.zeros_like(t) if copied.zero else t.detach().clone()
        for fresh in self._fresh(tensors):
            new.update(fresh.make())
        return new

    @abstractmethod
    def _neighbours(self) -> dict[str, list[str]]:
        """For each parameter that only the student has, the teacher's parameters whose options in the optimizer it may
        take, the best first."""

    @abstractmethod
    def _body(self) -> dict[str, Any]:
        """The plan's own part of its JSON form."""

    @classmethod
    @abstractmethod
    def _from_body(cls, body: dict[str, Any], inventory: Inventory, skipped: list[Skipped]) -> GrowthPlan: ...

    # -- growing -----------------------------------------------------------------------------------------------------

    @one_consumer_at_a_time
    @no_collections()
    def apply(self, model: nn.Module, *, consume: bool = False) -> nn.Module:
        """The student: a new object of the same classes, with grown parameters, buffers and attributes.

        All weights move in one launch per dtype. `model` is not touched, and nothing is shared with it. What can be
        prepared for a device and for dtypes is kept, so a plan's later applications take less time than its first.

        Args:
            model: the teacher.
            consume: use the teacher up, where teacher and student do not fit into memory together. Its tensors (and
                their gradients) are grown a chunk at a time and freed at once, so that there is never more than the
                student and a chunk: the largest tensor, or a 32nd of the teacher. The student is the same, bit for bit.
                Afterwards the teacher is spent: to run it raises a RuntimeError, to grow it a ValueError. All checks
                come before that; but if memory runs out midway, teacher and student are lost. Memory that something
                else holds too (a tensor that is a view into a larger one, an autograd graph) is not freed.

        Raises:
            ValueError: if the parameters of `model` are not those that the plan was made for.
        """
        tensors = check_model(model, self.inventory.plain)
        self.inventory.check_tensors(tensors)
        moving = {name: t for name, t in tensors.by_name.items() if movable(t)}
        with torch.no_grad():
            if consume:
                student = self._used_up(model, tensors, moving)
            else:
                student = rebuild(model, self._grown(moving), tensors)
                self._finish(student)
            self._fill(student)
        self._teachers[student] = {
            id(p): (ref(p), name) for name, p in tensors.parameters.items() if name not in tensors.aliases
        }
        return student

    def _grown(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The student's values of these teacher tensors, under the teacher's names, in one launch per dtype."""
        if not tensors:
            return {}
        old = list(tensors.values())
        launch = self._launch(_entries(tensors), old)
        grown = run(launch, old, self._noise_stds(list(tensors), old), self._seed)
        made = dict(zip(tensors, grown, strict=True))
        self._cross(self._crossing_stds(tensors), made)
        return made

    def _used_up(self, model: nn.Module, tensors: Tensors, moving: dict[str, Tensor]) -> nn.Module:
        """The student, for which `model` is used up."""
        old = list(moving.values())
        parts = self._parts(_entries(moving), old)
        stds, crossing = self._noise_stds(list(moving), old), self._crossing_stds(moving)
        # The student is made first, without its data: what the model holds beside its tensors may turn out not to be
        # such that it can be copied.
        new = {name: in_place_of(t, placeholder(t, self.student_shape(name))) for name, t in moving.items()}
        student = rebuild(model, new, tensors)
        kept = {id(t) for t in Tensors.of(student, self.inventory.plain).by_name.values()}
        for name, t in moving.items():
            if id(t) in kept:
                raise ValueError(
                    f"model cannot be consumed: {name} is in its copies too, which some __deepcopy__ wants"
                )
        self._finish(student)
        spend(model)
        hand_over(parts, old, list(new.values()), stds, self._seed)
        self._cross(crossing, new)
        return student

    def _launch(self, entries: Sequence[Entry], tensors: Sequence[Tensor]) -> Prepared:
        return self._launches.get(entries, tensors, self._law, self._noise, self._ids)

    def _parts(self, entries: list[Entry], tensors: list[Tensor]) -> list[Part]:
        """The same in chunks. What cannot be launched raises here."""
        if not tensors:
            return []
        self._launch(entries, tensors)  # chunks derive from it
        return [(self._launch(entries[part], tensors[part]), part) for part in cut(tensors)]

    def grow_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's state dict, from the teacher's. The given one is not touched.

        Raises:
            ValueError: if keys or shapes do not fit the plan.
        """
        self.inventory.check_state_dict(state_dict)
        first = {k: self.inventory.aliases.get(k, k) for k, t in state_dict.items() if isinstance(t, Tensor)}
        with torch.no_grad():
            given = {first[k]: state_dict[k] for k in first if movable(state_dict[k])}
            moving = {name: given[name] for name in self.shapes if name in given}  # in the order of a model's tensors
            grown = self._grown(moving)
            student = {
                self._renamed(k): grown[first[k]] if first.get(k) in grown else copy.deepcopy(t)
                for k, t in state_dict.items()
            }
            student.update(self._new_tensors({k: t for k, t in state_dict.items() if isinstance(t, Tensor)}))
            self._mend(grown)
        return student

    @one_consumer_at_a_time
    @no_collections()
    def grow_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        student: nn.Module,
        *,
        consume: bool = False,
        state: str = "exact",
        dynamics: bool = False,
    ) -> torch.optim.Optimizer:
        """An optimizer of the same class for `student`, with the state of `optimizer` carried along.

        State moves by the laws of the gradients (see `net2net.optimizer`): the student's state is what it would have
        been, had its gradients been collected by it all along. Parameter groups and their options stay; new layers get
        fresh state, in the group of the layer that they follow. `optimizer` is not touched.

        Args:
            optimizer: an optimizer over the parameters of the model that this plan was applied to.
            student: what `apply` returned, with or without `consume`.
            consume: use the optimizer's state up, as `apply` does a model: it is grown a chunk at a time and freed at
                once. Afterwards `optimizer` is spent, and its `step` raises a RuntimeError.
            state: `"exact"`, as above; `"replicas_reset"`: momentum of units that have replicas now is zeroed (second
                moments are kept: they are scales, not directions); `"reset"`: all state is fresh.
            dynamics: from now on each step is what the teacher's would have been (see `net2net.dynamics`).

        Raises:
            ValueError: if `student` does not come from this plan, or `optimizer` holds other parameters than its
                teacher's.
            TypeError: if no law is known for the state of `optimizer`, or with `dynamics`, if its step is not
                element-wise.
        """
        optim.check_state(state)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer (={type(optimizer).__name__}) must be a torch.optim.Optimizer")
        check_not_spent("optimizer", optimizer)
        origin = self._teachers.get(student)
        if origin is None:
            raise ValueError("student was not made by this plan's apply()")
        names: dict[Tensor, str] = {}
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                known, name = origin.get(id(p), (_nothing, ""))
                if known() is not p:
                    raise ValueError(
                        f"optimizer.param_groups[{index}] holds a parameter of shape {tuple(p.shape)} that is not one "
                        "of the model that this plan was applied to"
                    )
                names[cast(Tensor, p)] = name
        laws = optim.laws_for(optimizer)
        if dynamics:
            check_dynamics(optimizer)
            if mended := next(iter(self._mended()), None):
                raise ValueError(f"dynamics cannot be kept where weights are computed, as with {mended}")
        moving = optim.state_tensors(optimizer, names, laws, self.shapes)
        reset = state == "reset"
        if reset:
            moving = []
        # In the teacher's coordinates state is the teacher's.
        entries = [Entry(names[m.parameter], 0 if dynamics else m.power) for m in moving]
        old = [m.value for m in moving]
        parameters = Tensors.of(student).parameters
        replaced = {p: parameters[self._renamed(name)] for p, name in names.items()}
        fresh = self._joining(names, parameters)
        with torch.no_grad():
            if not consume:
                values = run(self._launch(entries, old), old) if old else []
                grown = optim.rebuild(optimizer, replaced, moving, values, fresh, reset=reset)
            else:
                parts = self._parts(entries, old)
                values = [placeholder(t, self.student_shape(e.name)) for e, t in zip(entries, old, strict=True)]
                grown = optim.rebuild(optimizer, replaced, moving, values, fresh, reset=reset)
                spend(optimizer)
                hand_over(parts, old, values)
            for m, value in zip(moving, values, strict=True):
                self._fill_state(names[m.parameter], m, value)
            if state == "replicas_reset":
                for m, value in zip(moving, values, strict=True):
                    optim.reset_replicas(m, value, self._grown_axes(names[m.parameter]))
            if not dynamics:
                optim.mend_normalised(grown, replaced, lambda p: self._grown_axes(names[p]))
            self._put_in_order(optimizer, grown, names, parameters)
            carry(optimizer, grown, replaced, lambda p: self._grown_axes(names[p]), start=dynamics)
        return grown

    def _joining(
        self, names: Mapping[Tensor, str], parameters: Mapping[str, nn.Parameter]
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """Those of the student's parameters that only it has, each with the teacher's parameter (of those in `names`)
        whose options in the optimizer it takes."""
        held = {name: p for p, name in names.items()}
        fresh = []
        for new, neighbours in self._neighbours().items():
            near = next((name for name in neighbours if name in held), None)
            if new in parameters and near is not None:
                fresh.append((parameters[new], held[near]))
        return fresh

    def _put_in_order(
        self,
        optimizer: torch.optim.Optimizer,
        grown: torch.optim.Optimizer,
        names: Mapping[Tensor, str],
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        """Has the parameters in `grown` follow each other as in the student, where they did so in the teacher."""
        places: dict[Tensor, tuple[int, str]] = {}
        for place, (name, p) in enumerate(parameters.items()):
            places.setdefault(p, (place, name))
        optim.put_in_order(optimizer, grown, {p: self._ids[name] for p, name in names.items()}, places)

    def grow_checkpoint(
        self,
        src: str | os.PathLike[str],
        dst: str | os.PathLike[str],
        *,
        optimizer: str | None = None,
        state: str = "exact",
        model: nn.Module | None = None,
        order: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> CheckpointReport:
        """Grows a checkpoint into another one, with the bits of `grow_state_dict` and `grow_optimizer`.

        Tensors are read where they lie and written some rows at a time, so that neither teacher nor student is ever in
        memory. `dst` is there as a whole or not at all, whenever the process is killed, and the next run with the same
        `dst` removes what is left of it. The growth log is in what is written: `net2net.load` makes the grown network
        of it.

        Args:
            src: a safetensors file; a folder of several with an index (or the index); a checkpoint of `net2net train`;
                a file of `torch.save`, read with `weights_only=True`; or a folder of `torch.distributed.checkpoint`. In
                the last two, state dicts of the model and of its optimizer are found wherever they are in nested dicts,
                also behind the prefixes of averages and data parallelism; all else stays.
            dst: of the same kind, and not there yet; a state dict of `torch.save` may become a safetensors file.
            optimizer: the class of the optimizer whose state is in `src`, where it does not say: `"AdamW"`.
            state: what becomes of it, see `grow_optimizer`.
            model: a module like the teacher's (it may be on the meta device), where a checkpoint knows parameters by
                their positions and the plan adds some.
            order: how these follow each other in each group of the optimizer: `"model"`, as in `model.parameters()`;
                `"names"`, sorted by name; or a list of all names, group after group. The shapes of their state must
                tell which group has which. None: as `"model"`, but where there are several groups and the shapes allow
                for `"names"` too, that is an error. Where several optimizers know parameters by position, a dict has
                the order of those that are the model's, by their names in the checkpoint.
            progress: called after each piece with the tensor's name, the bytes written, and all that there will be.

        Returns:
            A report; among others, which tensors have numbers that are not finite.

        Raises:
            FileExistsError: there is something at `dst`.
            ValueError: `src` is damaged or does not fit the plan, or an optimizer's state has no known law.
            OSError: `dst` cannot be written.
        """
        from net2net.checkpoints.steps import grow_checkpoint

        return grow_checkpoint(
            src, dst, [self], optimizer=optimizer, state=state, model=model, order=order, progress=progress
        )

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON. An interrupted write leaves no half file."""
        write_atomically(Path(path), json.dumps(self.document(), indent=1))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> GrowthPlan:
        """Reads a plan. All of its fields are checked, and nothing in it is run, so a file from elsewhere does no harm;
        whether its student computes what the teacher does, only `net2net.verify` tells.

        Raises:
            ValueError: if the file is not a plan, is of another version, or holds an inconsistent plan.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        return GrowthPlan.from_document(document, str(path))

    def document(self) -> dict[str, Any]:
        """The plan as what JSON knows."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "names": list(self.shapes),  # in their order, which no JSON object has to keep
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "parameters": self.inventory.parameters,
            "aliases": self.inventory.aliases,
            "saved": sorted(self.inventory.saved),
            "plain": sorted(self.inventory.plain),
            "skipped": [asdict(s) for s in self.skipped],
            **self._body(),
        }
        return {**document, "digest": _digest(document)}

    @staticmethod
    def from_document(document: Any, what: str) -> GrowthPlan:
        """The plan of a `document()`; `what` it is called in errors, which are those of `load`."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"{what} is not a growth plan")
        if type(document.get("version")) is not int or document["version"] != VERSION:
            raise ValueError(f"{what} is a plan of version {document.get('version')}; this program reads {VERSION}")
        kind = GrowthPlan._kinds.get(str(document.get("kind")))
        if kind is None:
            raise ValueError(f"{what} is a plan of an unknown kind (={document.get('kind')!r})")
        try:
            inventory = Inventory.read(document)
            plan = kind._from_body(document, inventory, [Skipped.read(s) for s in document["skipped"]])
            plan_fields.check_growth(what, inventory.numbers(), plan._numbers())
        except _DAMAGE as error:
            raise ValueError(f"{what} is damaged: {type(error).__name__}: {error}") from error
        if document.get("digest") != _digest(document):
            raise ValueError(f"{what} was changed after it was written: its parts may no longer fit each other")
        return plan


def _digest(document: dict[str, Any]) -> str:
    """Of everything but the digest itself."""
    rest = {k: v for k, v in document.items() if k != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _entries(names: Iterable[str]) -> list[Entry]:
    return [Entry(name, None) for name in names]


def _nothing() -> None:
    """A reference to nothing."""
