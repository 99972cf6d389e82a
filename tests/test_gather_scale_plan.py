"""GatherScalePlan: prepared once, run many times, with the bits of gather_scale."""

import concurrent.futures
import copy
import pickle
from typing import Any

import pytest
import torch
from gather_scale_cases import FEW, arguments, teachers
from kernel_cases import assert_same_bits

import n2n_kernels as nk


def call(device: torch.device, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    return arguments(teachers(FEW, torch.float32), device)


def plan_of(given: dict[str, Any], backend: str, **options: Any) -> nk.GatherScalePlan:
    return nk.GatherScalePlan(**given, **options, backend=backend)


@pytest.mark.parametrize("noise", ["replicas", "cancelling"])
def test_a_plan_gives_the_bits_of_gather_scale(backend: str, device: torch.device, noise: str) -> None:
    given = call(device)
    plan = plan_of(given, backend, noise=noise)
    assert plan.device.type == device.type
    for std, seed in ((0.0, 0), (0.3, 5)):
        expected = nk.gather_scale(**given, noise=noise, noise_std=std, seed=seed, backend=backend)
        for got in (plan(given["srcs"], noise_std=std, seed=seed), plan(given["srcs"], noise_std=std, seed=seed)):
            for a, b in zip(got, expected, strict=True):
                assert_same_bits(a, b)
                assert a.stride() == b.stride()


def test_run_reads_the_sources_as_they_are_now(backend: str, device: torch.device) -> None:
    given = call(device)
    bound = plan_of(given, backend).bind(given["srcs"])
    bound.run()
    for src in given["srcs"]:
        src.mul_(2)
    out = bound.run()
    assert out is bound.out
    for a, b in zip(out, nk.gather_scale(**given, backend=backend), strict=True):
        assert_same_bits(a, b)


def test_run_copies_what_it_cannot_read_each_time(backend: str, device: torch.device) -> None:
    w = torch.randn(4, 3, 5, 6, device=device)[:, :, ::2, ::3]  # kernel dimensions that do not fold
    g = torch.tensor([0, 1, 2, 3, 1])
    bound = nk.GatherScalePlan([w], [g], None, backend=backend).bind([w])
    assert_same_bits(bound.run()[0], w[g.to(device)])
    w.neg_()
    assert_same_bits(bound.run()[0], w[g.to(device)])


def test_other_layouts_and_other_tensors(backend: str, device: torch.device) -> None:
    """A plan is for shapes; layouts may differ from call to call, and outputs may be given."""
    g = torch.tensor([0, 1, 2, 3, 3, 0])
    plan = nk.GatherScalePlan([torch.empty(4, 4, 3, 3, device=device)], [g], [g], backend=backend)
    for seed in range(2):
        torch.manual_seed(seed)
        w = torch.randn(4, 4, 3, 3, device=device)
        expected = w[g.to(device)][:, g.to(device)]
        for src in (w, w.to(memory_format=torch.channels_last), w.transpose(0, 1).contiguous().transpose(0, 1)):
            assert_same_bits(plan([src])[0], expected)
            out = torch.full((6, 6, 3, 3), torch.nan, device=device).to(memory_format=torch.channels_last)
            assert plan([src], [out])[0] is out
            assert_same_bits(out, expected)


def test_a_derived_plan_has_the_maps_with_other_scales(backend: str, device: torch.device) -> None:
    """As for optimizer state: some of the tensors, some more than once, scaled on the other axis."""
    g, h = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 1])
    weights = [torch.randn(3, 2, 3, 3, device=device), torch.randn(3, device=device)]
    split = torch.tensor([0.5, 1, 1, 0.5])
    plan = nk.GatherScalePlan(
        weights, [g, g], [h, None], in_scales=[torch.tensor([1, 0.5, 0.5]), None], backend=backend
    )
    plan(weights)
    derived = plan.derive([1, 0, 0], out_scales=[split, split, split**2])
    state = [torch.rand(3, device=device), *(torch.rand(3, 2, 3, 3, device=device) for _ in range(2))]
    expected = nk.gather_scale(state, [g] * 3, [None, h, h], out_scales=[split, split, split**2], backend=backend)
    for a, b in zip(derived(state), expected, strict=True):
        assert_same_bits(a, b)
    again = derived.derive([2])
    assert_same_bits(again([state[2]])[0], nk.gather_scale([state[2]], [g], [h], backend=backend)[0])


def test_noise_by_a_tensor_on_the_device(backend: str, device: torch.device) -> None:
    """Nothing is read back; what is no standard deviation gives no noise."""
    given = call(device)
    n = len(given["srcs"])
    plan = plan_of(given, backend, noise="cancelling")
    stds = [0.1 * i for i in range(n)]
    expected = plan(given["srcs"], noise_std=stds, seed=3)
    got = plan(given["srcs"], noise_std=torch.tensor(stds, dtype=torch.float64, device=device), seed=3)
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b)
    plain = plan(given["srcs"])
    for wrong in (torch.nan, torch.inf, -1.0, 1e300):
        got = plan(given["srcs"], noise_std=torch.full((n,), wrong, dtype=torch.float64, device=device))
        for a, b in zip(got, plain, strict=True):
            assert_same_bits(a, b, f"noise_std {wrong}")


def test_several_threads_share_a_plan(backend: str, device: torch.device) -> None:
    if backend == "triton" and device.type == "cpu":
        pytest.skip("Triton's interpreter patches its own module while it runs, so it serves one thread at a time")
    given = call(device)
    plan = plan_of(given, backend)
    sets = [[src + i for src in given["srcs"]] for i in range(8)]
    alone = [plan(srcs) for srcs in sets]
    fresh = plan_of(given, backend)  # its tables are made by whichever thread comes first
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fresh, sets))
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)


def test_a_cuda_graph_replays_it(backend: str, device: torch.device) -> None:
    if device.type != "cuda" or backend == "reference":
        pytest.skip("graphs are CUDA's, and the reference reads maps on the host")
    given = call(device)
    bound = plan_of(given, backend).bind(given["srcs"])
    bound.run()  # compiles, where there is something to compile
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bound.run()
    for src in given["srcs"]:
        src.add_(1)
    graph.replay()
    for a, b in zip(bound.out, nk.gather_scale(**given, backend=backend), strict=True):
        assert_same_bits(a, b)


def test_a_side_stream(backend: str, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("streams are CUDA's")
    given = call(device)
    bound = plan_of(given, backend).bind(given["srcs"])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        bound.run()
    stream.synchronize()
    for a, b in zip(bound.out, nk.gather_scale(**given, backend=backend), strict=True):
        assert_same_bits(a, b)


def test_wrong_arguments_are_named() -> None:
    w, g = torch.randn(3, 2), torch.tensor([0, 1, 2, 0])
    plan = nk.GatherScalePlan([w], [g], None)
    for wrong, message in (
        ([torch.randn(3, 3)], r"srcs\[0\] .*shape \(3, 3\).* is not what the plan was made for"),
        ([w.double()], r"srcs\[0\] \(torch.float64"),
        ([w, w], "srcs has 2 entries, but the plan has 1"),
    ):
        with pytest.raises(ValueError, match=message):
            plan.bind(wrong)
    with pytest.raises(ValueError, match=r"out\[0\].shape \(=\(3, 2\)\) must be \(4, 2\)"):
        plan.bind([w], [torch.empty(3, 2)])
    shared = torch.zeros(8)
    with pytest.raises(ValueError, match=r"out\[0\] overlaps srcs\[0\]"):
        plan.bind([shared[:6].view(3, 2)], [shared.view(4, 2)])
    with pytest.raises(ValueError, match=r"noise_std.dtype \(=torch.float32\) must be torch.float64"):
        plan.bind([w], noise_std=torch.zeros(1))
    with pytest.raises(ValueError, match=r"noise_std\[0\] \(=-1.0\) must be finite and not negative"):
        plan.bind([w], noise_std=-1.0)
    with pytest.raises(ValueError, match=r"seed \(=-1\) must be in"):
        plan.bind([w], seed=-1)
    with pytest.raises(ValueError, match=r"entries\[0\] \(=1\) must be in \[0, 1\)"):
        plan.derive([1])
    for wrong, name in ((0, "int"), ("0", "str"), (torch.tensor([0]), "Tensor"), (None, "NoneType")):
        with pytest.raises(TypeError, match=rf"entries \(={name}\) must be a list of integers"):
            plan.derive(wrong)
    with pytest.raises(ValueError, match=r"out_scales\[0\] has 3 entries, but the student's axis 0 has 4"):
        plan.derive([0], out_scales=[torch.ones(3)])


def test_tensors_without_plain_memory_are_refused() -> None:
    w, g = torch.randn(3, 2), torch.tensor([0, 1, 2, 0])
    plan = nk.GatherScalePlan([w], [g], None)
    negative = torch.randn(3, 2, dtype=torch.complex64).conj().imag
    freed = torch.randn(3, 2)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"srcs\[0\] is a view that stands for the negative"):
        plan([negative])
    with pytest.raises(ValueError, match=r"out\[0\] is a view that stands for the negative"):
        plan([w], [torch.randn(4, 2, dtype=torch.complex64).conj().imag])
    for call in (lambda: plan([freed]), lambda: nk.gather_scale([freed], [g], None), lambda: nk.identity_([freed])):
        with pytest.raises(ValueError, match=r"\[0\] \(shape \(3, 2\)\) has no memory"):
            call()


def test_storages_that_are_too_short_are_refused() -> None:
    """Offsets and gaps count; memory before a tensor does not."""
    plan = nk.GatherScalePlan([torch.empty(3, 2)], [torch.tensor([0, 1, 2, 0])], None)
    for offset, strides, needed in ((0, (2, 1), 24), (5, (2, 1), 44), (1, (1, 4), 32), (2, (0, 0), 12)):
        w = torch.zeros(100).as_strided((3, 2), strides, offset)
        w.untyped_storage().resize_(needed)
        assert plan([w])[0].shape == (4, 2)
        w.untyped_storage().resize_(needed - 1)
        for call in (lambda w=w: plan([w]), lambda w=w: plan.bind([w]), lambda w=w: nk.channel_moments(w)):
            with pytest.raises(ValueError, match=rf"needs a storage of {needed} bytes, .* shortened to {needed - 1}"):
                call()
    empty = torch.zeros(4)[3:3]
    empty.untyped_storage().resize_(0)
    assert nk.GatherScalePlan([empty], None, None)([empty])[0].shape == (0,)


def test_what_is_bound_keeps_its_memory() -> None:
    w, g = torch.randn(300, 200), torch.arange(300).repeat(2)
    expected = w.repeat(2, 1)
    bound = nk.GatherScalePlan([w], [g], None).bind([w])
    w.data = torch.zeros(300, 200)
    assert_same_bits(bound.run()[0], expected)


def test_copies_of_a_plan() -> None:
    w, g = torch.randn(3, 2), torch.tensor([0, 1, 2, 0])
    plan = nk.GatherScalePlan([w], [g], None)
    assert_same_bits(copy.deepcopy(plan)([w])[0], w[g])
    with pytest.raises(TypeError, match="cannot be pickled; make it anew"):
        pickle.dumps(plan)


def test_two_of_one_plan_at_once(backend: str, device: torch.device) -> None:
    """Each with tensors of its own, both bound before either runs."""
    g = torch.tensor([0, 1, 2, 0])
    a, b = (torch.randn(3, 2, device=device) for _ in range(2))
    plan = nk.GatherScalePlan([a], [g], None, backend=backend)
    first, second = plan.bind([a]), plan.bind([b])
    for bound, src in ((first, a), (second, b), (first, a)):
        assert_same_bits(bound.run()[0], src[g.to(device)])


def test_an_odd_address_after_an_even_one() -> None:
    """Of a view of a file. It is copied, whatever the plan has met before: not every processor reads it."""
    w, g = torch.randn(3, 2), torch.tensor([0, 1, 2, 0])
    odd = torch.frombuffer(bytearray(25), dtype=torch.float32, count=6, offset=1).view(3, 2).copy_(w)
    assert odd.data_ptr() % 4
    plan = nk.GatherScalePlan([w], [g], None, backend="cpu")
    plan([w])
    bound = plan.bind([odd])
    assert len(bound._copies) == 1
    assert_same_bits(bound.run()[0], w[g])
