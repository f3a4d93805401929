"""A plan goes in; findings come out of the environments of its engines, which are not the doctor's own: whether their
vLLM can be imported, and whether their torch sees the devices."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from scaleup.children import python_environment
from scaleup.doctor.finding import Finding, fail, ok
from scaleup.plan.types import GroupPlan, Plan

IMPORT_SECONDS = 180
"""Bounds an import that takes seconds."""
QUESTION = """
import json, torch, vllm
print(json.dumps({"vllm": vllm.__version__, "torch": torch.__version__, "gpus": torch.cuda.device_count()}))
"""


def engine_findings(plan: Plan, node_rank: int) -> Iterator[Finding]:
    """Yield what the engines on this node say of themselves."""
    for group in plan.groups:
        if group.generator is not None and group.is_on(node_rank):
            yield from _asked(group, group.generator.python)


def _asked(group: GroupPlan, python: str) -> Iterator[Finding]:
    environment = {name: value for name, value in python_environment().items() if name != "PYTHONPATH"}
    name, remedy = f"{group.name}.python", "make vllm, or mend that environment"
    try:
        done = subprocess.run(
            [python, "-c", QUESTION],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            env=environment,
            check=False,
        )
        told = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield fail(name, f"{python} takes more than {IMPORT_SECONDS} s to import vLLM", remedy)
        return
    except (OSError, ValueError, IndexError) as error:
        last = done.stderr.strip().splitlines()[-1:] if isinstance(error, (ValueError, IndexError)) else [str(error)]
        yield fail(name, f"{python} cannot import vLLM: {' '.join(last)}", remedy)
        return
    shown = f"vLLM {told['vllm']} with torch {told['torch']}"
    needed = group.first_device + group.num_processes
    if group.device == "cuda" and told["gpus"] < needed:
        yield fail(name, f"{shown} finds {told['gpus']} GPUs, and needs {needed}", "install vLLM's CUDA build there")
    else:
        yield ok(name, shown)
