"""What a scheduler has granted the job that this process is in, against what the plan needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scaleup.errors import Problem
from scaleup.plan.types import Plan


def granted_problems(plan: Plan, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Refuses a run of more nodes than its Slurm job has: the others would never come."""
    granted = _slurm_nodes(environment)
    if granted is not None and plan.num_nodes > granted:
        what = f"the run needs {plan.num_nodes} nodes, and job {environment['SLURM_JOB_ID']} was granted {granted}"
        yield Problem("parallel.num_nodes", what, f"ask for --nodes={plan.num_nodes}, or use fewer")


def _slurm_nodes(environment: Mapping[str, str]) -> int | None:
    """Of all components of a heterogeneous job together; None outside of a job."""
    if "SLURM_JOB_ID" not in environment:
        return None
    components = int(environment.get("SLURM_HET_SIZE", "0"))
    names = [f"SLURM_JOB_NUM_NODES_HET_GROUP_{number}" for number in range(components)] or ["SLURM_JOB_NUM_NODES"]
    counts = [environment.get(name, "") for name in names]
    return sum(map(int, counts)) if all(count.isdecimal() for count in counts) else None
