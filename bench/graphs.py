"""CUDA graphs: a call captured once and replayed, which leaves out the host's work."""

from collections.abc import Callable
from typing import Any

import torch


def replay(run: Callable[[], Any]) -> Callable[[], Any]:
    """A call that replays `run` and returns what `run` returned when it was captured: tensors, written anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is set up at the first call must not be captured
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.empty_cache()  # a capture has a pool of its own, and cannot take what others keep for later
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def call() -> Any:
        graph.replay()
        return result

    return call
