"""Every compiled kernel once, on small tensors, its results compared with the reference: for compute-sanitizer, under
which pytest and large tensors would take too long."""

import torch

import n2n_kernels as nk
from n2n_kernels.dtypes import TABLE


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = device.type
    g_out, g_in = torch.tensor([0, 1, 2, 3, 0, 2]), torch.tensor([2, 0, 1, 1, 2])
    g_long = torch.arange(70).repeat(2)
    calls = 0
    for dtype, row in TABLE.items():
        srcs = [
            torch.randn(4, 3, 3, 3),
            torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
            torch.randn(4, 3).t().contiguous().t(),
            torch.randn(4),
            torch.randn(70, 70),  # several tiles
        ]
        srcs = [src.to(device, dtype) for src in srcs]
        maps = ([g_out] * 4 + [g_long], [g_in, g_in, g_in, None, g_long])
        for noise, std in (("replicas", 0.0), ("replicas", 0.1), ("cancelling", 0.1)):
            options = {"in_scales": [torch.rand(5)] * 3 + [None] * 2, "noise_std": std, "noise": noise}
            got = nk.gather_scale(srcs, *maps, **options, backend=backend)
            expected = nk.gather_scale([src.cpu() for src in srcs], *maps, **options, backend="reference")
            for a, b in zip(got, expected, strict=True):
                if not torch.equal(a.cpu().contiguous().view(row.bits), b.contiguous().view(row.bits)):
                    raise AssertionError(f"gather_scale, {dtype}, {noise}")
            calls += 1
        layers = [torch.empty(6, 2, 3, 3, dtype=dtype, device=device), torch.empty(80, 80, dtype=dtype, device=device)]
        nk.identity_(layers, groups=[3, 1], backend=backend)
        if layers[0].sum() != 6 or layers[1].sum() != 80:
            raise AssertionError(f"identity_, {dtype}")
        x = torch.randn(5, 3, 40, 41).to(device, dtype)
        moments = zip(
            nk.channel_moments(x, backend=backend), nk.channel_moments(x.cpu(), backend="reference"), strict=True
        )
        if not all(torch.equal(a.cpu(), b) for a, b in moments):
            raise AssertionError(f"channel_moments, {dtype}")
        tensors = [x, x[0, 0, 0], layers[0], x[..., 1:], x.flatten()[1:]]
        moments = zip(
            nk.tensor_moments(tensors, backend=backend),
            nk.tensor_moments([t.cpu() for t in tensors], backend="reference"),
            strict=True,
        )
        if not all(torch.equal(a.cpu(), b) for a, b in moments):
            raise AssertionError(f"tensor_moments, {dtype}")
        calls += 3
    print(f"{calls} calls on {device}: as the reference has it")


if __name__ == "__main__":
    main()
