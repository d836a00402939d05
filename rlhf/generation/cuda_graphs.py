"""CUDA graphs of one function: the kernels of a call are recorded once and started together afterwards."""

from collections.abc import Callable

import torch


def with_cuda_graphs(step: Callable[[int], None]) -> Callable[[int], None]:
    """Replaces `step` on a GPU by CUDA graphs, one for each argument.

    The first call with an argument runs `step` itself, in which libraries initialize; the second call captures a graph.
    The returned function owns the graphs and the buffers that they write to.
    """
    graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
    pool = torch.cuda.graph_pool_handle()

    def replay(argument: int) -> None:
        if argument not in graphs:
            graphs[argument] = None
            return step(argument)
        graph = graphs[argument]
        if graph is None:
            graph = graphs[argument] = torch.cuda.CUDAGraph()
            # thread_local: CUDA calls of other threads during the capture, such as pinning memory, are no error.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                step(argument)
        graph.replay()

    return replay
