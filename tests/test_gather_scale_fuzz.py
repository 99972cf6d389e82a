"""gather_scale on random lists of tensors: every usable backend at once, against the definition and each other."""

import math

import fuzz
import pytest
import torch
from gather_scale_cases import Case, Teacher, arguments, assert_as_defined, teacher
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DTYPES, LAYOUTS, TARGET_LAYOUTS, assert_same_bits, embed
from ptx_module import PtxModule, built_ptx

import n2n_kernels as nk
from n2n_kernels import native
from n2n_kernels.backends import ORDER
from n2n_kernels.ops.gather_scale import native as gather_scale_native

CPU = torch.device("cpu")
USABLE = [name for name in ORDER if nk.backends()[name] is None]
#: Of the CUDA kernels on the CPU: their code thread by thread, and what a GPU is given of it.
EMULATED = ["blocks"] if built_ptx()[1] else ["blocks", "ptx"]


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend not in {"cpu", *EMULATED} and torch.cuda.is_available() else "cpu")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """1-D to 5-D, any axis possibly empty, each map possibly absent."""
    channels = draw(st.lists(st.integers(0, 6), min_size=1, max_size=2))
    kernel = draw(st.lists(st.integers(0, 4), max_size=3)) if len(channels) == 2 else []
    # An axis without units cannot grow.
    widths = [draw(st.none() | st.integers(n, n + 7)) if n else None for n in channels]
    return Case((*channels, *kernel), widths[0], widths[1] if len(widths) > 1 else None)


@st.composite
def long_rows(draw: st.DrawFn) -> Case:
    """Few rows of some thousand elements, each with several replicas on both axes."""
    kernel = draw(st.sampled_from([(3, 3), (1, 7), (7, 7), (), (3,), (4, 4), (2, 3, 5)]))
    about = 3000 // math.prod(kernel)
    rows, columns = draw(st.integers(1, 4)), about + draw(st.integers(-about // 2, about))
    return Case((rows, columns, *kernel), rows + draw(st.integers(0, 8)), columns + draw(st.integers(0, columns)))


@st.composite
def tensors(draw: st.DrawFn, cases: st.SearchStrategy[Case]) -> tuple[Teacher, str, str]:
    """A teacher, its layout, and the student's."""
    case = draw(cases)
    t = teacher(
        case,
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 1000)),
        scaled=draw(st.booleans()),
        shuffled=draw(st.booleans()),
    )
    fits = [name for name in LAYOUTS if len(case.shape) in LAYOUTS[name].dims]
    layout = draw(st.sampled_from(fits))
    # Kernels have ways of their own for students that lie as their teachers do.
    same = layout in TARGET_LAYOUTS and draw(st.booleans())
    return t, layout, layout if same else draw(st.sampled_from([name for name in fits if name in TARGET_LAYOUTS]))


noises = {
    "noise": st.sampled_from(["replicas", "cancelling"]),
    "std": st.sampled_from([0.0, 1e-30, 0.1, 100.0]),
    "seed": st.integers(0, 2**63 - 1),
}


@fuzz.cases(80)
@given(batch=st.lists(tensors(cases()), max_size=3), **noises)
def test_random_lists(batch: list[tuple[Teacher, str, str]], noise: str, std: float, seed: int) -> None:
    check(batch, [*USABLE, *EMULATED], noise, std, seed)


@fuzz.cases(150)
@given(batch=st.lists(tensors(long_rows()), min_size=1, max_size=2), **noises)
def test_random_long_rows(batch: list[tuple[Teacher, str, str]], noise: str, std: float, seed: int) -> None:
    # Triton's interpreter takes minutes.
    usable = [b for b in USABLE if b != "triton" or torch.cuda.is_available()]
    check(batch, [*usable, "blocks"], noise, std, seed)


@pytest.mark.skipif("ptx" not in EMULATED, reason=built_ptx()[1])
@fuzz.cases(20)
@given(batch=st.lists(tensors(long_rows()), min_size=1, max_size=1), **noises)
def test_random_long_rows_of_ptx(batch: list[tuple[Teacher, str, str]], noise: str, std: float, seed: int) -> None:
    check(batch, ["ptx"], noise, std, seed)


def check(batch: list[tuple[Teacher, str, str]], backends: list[str], noise: str, std: float, seed: int) -> None:
    given_ = [t for t, _, _ in batch]
    options = {"noise_std": std, "noise": noise, "seed": seed}
    expected = nk.gather_scale(**arguments(given_, CPU), **options, backend="reference")
    for backend in backends:
        device = device_of(backend)
        srcs = [arguments([t], device, layout=layout)["srcs"][0] for t, layout, _ in batch]
        targets = [embed(t.student_shape, t.values.dtype, layout, device) for t, _, layout in batch]
        call = {**arguments(given_, CPU), "srcs": srcs, "out": [target.tensor for target in targets]}
        with pytest.MonkeyPatch.context() as patch:
            if backend == "blocks":
                patch.setattr(gather_scale_native, "CPU", gather_scale_native.BLOCKS)
            elif backend == "ptx":
                module = PtxModule()
                patch.setattr(native, "module", lambda module=module: module)
            got = nk.gather_scale(**call, **options, backend="cpu" if backend in EMULATED else backend)
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_same_bits(a, b, f"{backend}, tensor {i}")
            targets[i].assert_only_inside_written()
    if std == 0:
        assert_as_defined(expected, given_)
