"""Which backends there are, why one is missing, and which one serves a call."""

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import n2n_kernels as nk
from n2n_kernels import dtypes, native, table
from n2n_kernels.ops.channel_moments import order
from n2n_kernels.ops.channel_moments import tasks as moments_tasks
from n2n_kernels.ops.gather_scale import tasks as gather_scale_tasks
from n2n_kernels.ops.identity import tasks as identity_tasks

#: The module, whose name in the package is the function's.
backends = importlib.import_module("n2n_kernels.backends")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_every_backend_is_there_or_has_a_reason() -> None:
    found = nk.backends()
    assert set(found) == {"cpu", "cuda", "triton", "reference"}
    assert found["reference"] is None
    assert all(reason is None or len(reason) > 5 for reason in found.values())


def test_this_tree_is_built() -> None:
    """A test run that skips the compiled backends would say little."""
    assert nk.build_info()["native"] is None


def test_the_best_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: set[str] = set()
    monkeypatch.setattr(backends, "missing", lambda name: "gone" if name in missing else None)
    monkeypatch.setattr(backends, "triton_interpreted", lambda: False)
    assert backends.choose(None, CUDA) == "cuda"
    assert backends.choose(None, CPU) == "cpu"
    missing.update({"cuda", "cpu"})
    assert backends.choose(None, CUDA) == "triton"
    assert backends.choose(None, CPU) == "reference"
    missing.add("triton")
    assert backends.choose(None, CUDA) == "reference"


def test_interpreted_triton_is_never_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "missing", lambda name: "gone" if name in {"cpu", "cuda"} else None)
    monkeypatch.setattr(backends, "triton_interpreted", lambda: True)
    assert backends.choose(None, CPU) == "reference"
    assert backends.choose("triton", CPU) == "triton"


@pytest.mark.parametrize(("name", "device"), [("cpu", CUDA), ("cuda", CPU), ("triton", CPU)])
def test_a_backend_refuses_the_others_device(monkeypatch: pytest.MonkeyPatch, name: str, device: torch.device) -> None:
    monkeypatch.setattr(backends, "missing", lambda _: None)
    monkeypatch.setattr(backends, "triton_interpreted", lambda: False)
    with pytest.raises(ValueError, match=rf"backend \(='{name}'\) cannot be used for tensors on {device}: it takes"):
        backends.choose(name, device)


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.native, "missing", "not built")
    assert backends.missing("cpu") == backends.missing("cuda") == "not built"
    monkeypatch.setattr(backends.native, "missing", None)
    monkeypatch.setattr(backends.native, "build_info", lambda: {"cuda": None})
    assert "built without CUDA" in str(backends.missing("cuda"))
    monkeypatch.setattr(backends.native, "build_info", lambda: {"cuda": "13.0"})
    monkeypatch.setattr(backends, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    assert backends.missing("cuda") == "no CUDA device"
    monkeypatch.setattr(backends, "triton_interpreted", lambda: False)
    assert "TRITON_INTERPRET=1" in str(backends.missing("triton"))
    monkeypatch.setattr(backends, "triton_interpreted", lambda: True)
    for triton, numpy, works in (("3.6.0", "2.4.0", False), ("3.6.0", "2.3.5", True), ("3.10.0+git", "2.10.1", True)):
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=triton))
        monkeypatch.setattr(backends.np, "__version__", numpy)
        reason = backends.missing("triton")
        assert reason is None if works else f"Triton {triton} does not run with NumPy {numpy}" in str(reason)
    monkeypatch.setattr(backends, "_triton_missing", lambda: "no triton")
    assert backends.missing("triton") == "no triton"
    with pytest.raises(ValueError, match=r"backend \(='metal'\) must be one of cuda, triton, cpu, reference"):
        backends.missing("metal")


def test_without_the_native_module_the_rest_works() -> None:
    """As in a source tree that was never built, and without Triton."""
    program = """
import sys
sys.modules["n2n_kernels._C"] = sys.modules["triton"] = None
import torch, n2n_kernels as nk
found = nk.backends()
assert "not built" in found["cpu"] and found["cpu"] == found["cuda"] == nk.build_info()["native"], found
assert found["triton"] is not None, found
u = nk.gather_scale([torch.ones(2)], [torch.tensor([0, 1, 1])], None)[0]
assert u.tolist() == [1, 1, 1]
nk.identity_([torch.ones(2, 2)])
nk.channel_moments(torch.ones(2, 2))
try:
    nk.gather_scale([torch.ones(2)], None, None, backend="cpu")
except ValueError as error:
    assert "backend (='cpu') cannot be used for tensors on cpu: the native module is not built" in str(error), error
else:
    raise AssertionError("no error")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_needs_no_triton() -> None:
    """Importing Triton takes a second, and it reads its environment then."""
    program = "import sys, n2n_kernels; assert 'triton' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_and_native_agree_on_their_constants() -> None:
    """The task tables are written in Python and read in C++."""
    if native.missing is not None:
        pytest.skip(native.missing)
    c = native.module()
    assert c.TILE == table.TILE
    assert (c.LANES, c.FOLD_LANES) == (order.LANES, order.FOLD_LANES)
    assert (c.MOMENTS_THREADS, c.VECTOR_BYTES) == (moments_tasks.THREADS, moments_tasks.VECTOR_BYTES)
    assert (c.IDENTITY_TILE_BYTES, c.VECTOR_BYTES) == (identity_tasks.TILE_BYTES, identity_tasks.VECTOR_BYTES)
    assert len(gather_scale_tasks.Column) == c.TASK_WORDS
    assert len(identity_tasks.Column) == c.IDENTITY_TASK_WORDS
    assert len(moments_tasks.Column) == c.TENSOR_TASK_WORDS
    assert sorted(d.code for d in dtypes.TABLE.values()) == [0, 1, 2, 3]


def test_cuda_without_a_gpu_says_so() -> None:
    """The module itself, past all checks: an exception, not a crash."""
    if native.missing is not None:
        pytest.skip(native.missing)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match=r"built without CUDA|launching identity_ failed"):
        native.module().identity(True, 0, 0, 0, 1, 1, 0)
