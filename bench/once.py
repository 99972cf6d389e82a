"""One launch of the largest case, for a profiler: `ncu --kernel-name regex:gather_scale python bench/once.py`."""

import argparse
from dataclasses import replace

import torch
from cases import Growth, cases
from inputs import GrowthInputs

import n2n_kernels as nk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, metavar="N", help="how many of the case's tensors (default: all)")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = next(case for case in cases("full", device) if isinstance(case, Growth))
    case = replace(case, full=min(given.tensors or case.full, case.full))
    inputs = GrowthInputs(case, device)
    nk.gather_scale(inputs.sets[0], inputs.out_maps, inputs.in_maps, in_scales=inputs.in_scales)
    print(f"gather_scale, {case.name} on {device}: {case.read} bytes read, {case.written} written at least")


if __name__ == "__main__":
    main()
