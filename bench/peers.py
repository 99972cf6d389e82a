"""How the same is done without this package, in torch: what the kernels are compared with.

Peers get maps, indices and scales ready on the device, and the advantages that ours have too: `out=` writes to tensors
that exist already, as `run` does, and `graph` replays the call as a CUDA graph.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from graphs import replay
from inputs import GrowthInputs, Inputs, Job
from ours import Call, Contender
from torch import Tensor

#: A graph of its own for every shape is the fastest compiled code, and takes seconds for each. Beyond this many shapes
#: the peer is compiled for all shapes at once.
MOST_COMPILED_SHAPES = 4


class UnavailableError(Exception):
    """A peer that cannot run here, and why."""


# -- gather_scale ----------------------------------------------------------------------------------------------------


def _index_select(job: Job) -> Tensor:
    """One axis after the other, then the scale: what most implementations of Net2Net do."""
    u = job.weight.index_select(0, job.out_map)
    if job.in_map is not None:
        u = u.index_select(1, job.in_map)
    return u if job.scale is None else u.mul_(job.scale)


def _indexing(job: Job) -> Tensor:
    """Both axes at once by advanced indexing, then the scale; in place, which is faster than `* s`."""
    u = job.weight[job.out_map] if job.in_map is None else job.weight[job.out_map[:, None], job.in_map]
    return u if job.scale is None else u.mul_(job.scale)


def _each(one: Callable[[Job], Tensor], jobs: Sequence[Job]) -> list[Tensor]:
    return [one(job) for job in jobs]


def _called(one: Callable[[Job], Tensor]) -> Contender:
    def calls(inputs: GrowthInputs) -> Iterator[Call]:
        for jobs in inputs.jobs:
            yield partial(_each, one, jobs)

    return calls


def _students(jobs: Sequence[Job]) -> list[Tensor]:
    return [job.weight.new_empty(job.student) for job in jobs]


def _index_select_out(inputs: GrowthInputs) -> Iterator[Call]:
    # What lies between the axes is as large as the largest of these, for all tensors in turn.
    between = max(math.prod(job.student[:1] + job.weight.shape[1:]) for job in inputs.jobs[0])
    scratch = torch.empty(between, dtype=inputs.case.dtype, device=inputs.device)

    def call(jobs: Sequence[Job], students: list[Tensor]) -> list[Tensor]:
        for job, u in zip(jobs, students, strict=True):
            if job.in_map is None:
                torch.index_select(job.weight, 0, job.out_map, out=u)
            else:
                shape = (job.student[0], *job.weight.shape[1:])
                rows = scratch[: math.prod(shape)].view(shape)
                torch.index_select(job.weight, 0, job.out_map, out=rows)
                torch.index_select(rows, 1, job.in_map, out=u)
            if job.scale is not None:
                u.mul_(job.scale)
        return students

    for jobs in inputs.jobs:
        yield partial(call, jobs, _students(jobs))


def _indexing_out(inputs: GrowthInputs) -> Iterator[Call]:
    def call(jobs: Sequence[Job], students: list[Tensor]) -> list[Tensor]:
        for job, u in zip(jobs, students, strict=True):
            indices = [job.out_map] if job.in_map is None else [job.out_map[:, None], job.in_map]
            torch.ops.aten.index.Tensor_out(job.weight, indices, out=u)
            if job.scale is not None:
                u.mul_(job.scale)
        return students

    for jobs in inputs.jobs:
        yield partial(call, jobs, _students(jobs))


def _to_compile(weight: Tensor, out_map: Tensor, in_map: Tensor | None, scale: Tensor | None) -> Tensor:
    u = weight[out_map] if in_map is None else weight[out_map[:, None], in_map]
    return u if scale is None else u * scale


def _compiled(inputs: GrowthInputs) -> Iterator[Call]:
    """A function of one tensor, called for each. One graph of a thousand tensors takes minutes to compile."""
    torch.compiler.reset()  # else earlier cases' shapes would count towards the limit on recompiling
    shapes = {job.weight.shape for job in inputs.jobs[0]}
    function: Any = torch.compile(_to_compile, dynamic=len(shapes) > MOST_COMPILED_SHAPES, fullgraph=True)

    def one(job: Job) -> Tensor:
        return function(job.weight, job.out_map, job.in_map, job.scale)

    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=64):
        warnings.simplefilter("ignore")  # the compiler's own
        try:
            _each(one, inputs.jobs[0])
        except RuntimeError as error:  # no C++ compiler, say; all of torch.compile's errors are of this class
            raise UnavailableError(f"torch.compile: {str(error).splitlines()[0]}") from error
    yield from _called(one)(inputs)


def _graphed(contender: Contender) -> Contender:
    def calls(inputs: Inputs) -> Iterator[Call]:
        yield from map(replay, contender(inputs))

    return calls


def gather_scale(device: torch.device) -> dict[tuple[str, str], Contender]:
    contenders: dict[tuple[str, str], Contender] = {
        ("index_select", "call"): _called(_index_select),
        ("indexing", "call"): _called(_indexing),
        ("compiled", "call"): _compiled,
        ("index_select", "out="): _index_select_out,
        ("indexing", "out="): _indexing_out,
    }
    if device.type == "cuda":
        contenders |= {
            ("index_select", "graph"): _graphed(_index_select_out),
            ("indexing", "graph"): _graphed(_indexing_out),
            ("compiled", "graph"): _graphed(_compiled),
        }
    return contenders


# -- identity_ -------------------------------------------------------------------------------------------------------


def _dirac(tensors: Sequence[Tensor]) -> None:
    for t in tensors:
        torch.nn.init.dirac_(t)


def _zero_and_strided_fill(tensors: Sequence[Tensor]) -> None:
    """An expert's way, two launches: the ones of a square weight lie evenly spaced."""
    for t in tensors:
        t.zero_()
        centre = sum(t.shape[d] // 2 * t.stride(d) for d in range(2, t.dim()))
        t.as_strided((t.shape[0],), (t.stride(0) + t.stride(1),), t.storage_offset() + centre).fill_(1)


def _filled(fill: Callable[[Sequence[Tensor]], None]) -> Contender:
    def calls(inputs: Inputs) -> Iterator[Call]:
        for tensors in inputs.sets:
            yield partial(fill, tensors)

    return calls


def identity(device: torch.device) -> dict[tuple[str, str], Contender]:
    contenders = {
        ("dirac_", "call"): _filled(_dirac),
        ("zero_, strided fill_", "call"): _filled(_zero_and_strided_fill),
    }
    if device.type == "cuda":
        contenders["zero_, strided fill_", "graph"] = _graphed(_filled(_zero_and_strided_fill))
    return contenders


# -- channel_moments -------------------------------------------------------------------------------------------------


def _var_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    return mean, var


def _batch_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """What SyncBatchNorm uses; it returns the inverse standard deviation in place of the variance."""
    return torch.batch_norm_stats(x, 1e-5)


def _taken(moments: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Contender:
    def calls(inputs: Inputs) -> Iterator[Call]:
        for (x,) in inputs.sets:
            yield partial(moments, x)

    return calls


def channel_moments(device: torch.device) -> dict[tuple[str, str], Contender]:
    contenders = {("var_mean", "call"): _taken(_var_mean)}
    if device.type == "cuda":
        contenders["batch_norm_stats", "call"] = _taken(_batch_norm_stats)
    return contenders


PEERS = {"gather_scale": gather_scale, "identity_": identity, "channel_moments": channel_moments}
