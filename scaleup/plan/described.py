"""A machine that is told of, not at hand: `scaleup plan CONFIG --gpus 64 --gpu-memory 80`."""

from __future__ import annotations

from collections.abc import Sequence

from scaleup.errors import Problem, ScaleupError
from scaleup.plan.machine import Machine, this_machine

CORES_A_GPU = 8
"""Only the number of threads depends on it."""


def described_machine(
    gpus: int | None, gpu_memory: float | None, nodes: int | None, overrides: Sequence[str]
) -> tuple[Machine, list[str]]:
    """The machine that stands for each of `nodes` alike, of `gpus` in all with so many GiB each, and what a config must
    be changed to in order to use it all. This machine where nothing is told.

    Raises ScaleupError where that is no machine."""
    if gpus is None and gpu_memory is None and nodes is None:
        return this_machine(), list(overrides)
    problems = []
    if gpus is None:
        problems.append(Problem("--gpus", "is needed to describe a machine", "say how many GPUs there are in all"))
    if gpu_memory is None:
        problems.append(Problem("--gpu-memory", "is needed to describe a machine", "give the GiB of one GPU, e.g. 80"))
    if gpus is not None and gpus % (nodes or 1):
        problems.append(Problem("--gpus", f"{gpus} do not divide over {nodes} nodes", f"use a multiple of {nodes}"))
    if problems:
        raise ScaleupError(problems)
    assert gpus is not None and gpu_memory is not None
    nodes = nodes or 1
    a_node = gpus // nodes
    machine = Machine(
        num_cores=CORES_A_GPU * a_node, num_gpus=a_node, gpu_memory=int(gpu_memory * 2**30), is_described=True
    )
    used = ["parallel.device=cuda", f"parallel.num_processes={gpus}", f"parallel.num_nodes={nodes}"]
    return machine, [*overrides, *used]
