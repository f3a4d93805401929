"""Of what draws responses: an engine that is not there, policies that it cannot load, keys that it does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.mistakes.case import Case
from tests.e2e.mistakes.ppo import FUNCTION, ppo, rewards
from tests.stand_in_engine import stand_in_python

VLLM: dict[str, Any] = {"engine": "vllm", "python": "environment/bin/python"}


def environment(folder: Path) -> None:
    """What a plan takes for one with vLLM."""
    rewards()(folder)
    stand_in_python(folder / "environment")


def generated(name: str, *lines: str, **rest: Any) -> Case:
    changes = {"generator": VLLM, **rest.pop("changes", {})}
    return ppo(name, *lines, **{"prepare": environment, **rest, "changes": changes})


GENERATORS = [
    generated(
        "no environment, and the keys of an engine without one",
        "error: generator.python: is needed by generator.engine: vllm -> make vllm, then name .venv-vllm/bin/python",
        "error: generator.placement: vllm draws in placement group -> use group, or leave it out",
        changes={"generator": {"engine": "vllm", "placement": "policy"}},
    ),
    generated(
        "keys of an engine for a policy that draws itself",
        "error: generator.python: has no meaning for engine transformers -> leave it out",
        "error: generator.tis_cap: has no meaning for engine transformers -> leave it out",
        changes={"generator": {"python": "environment/bin/python", "tis_cap": 3.0}},
    ),
    generated(
        "an environment that is not there",
        "elsewhere/bin/python -> make vllm, then name .venv-vllm/bin/python",
        changes={"generator": VLLM | {"python": "elsewhere/bin/python"}},
    ),
    generated(
        "a quantized policy, and an adapter that vllm does not take",
        "error: quantization: a policy in 4bit is not supported with generator.engine: vllm",
        "error: adapter.use_dora: is not supported with generator.engine: vllm",
        "error: generator.parallel.strategy: has no meaning for vllm -> leave it out",
        changes={
            "generator": VLLM | {"parallel": {"strategy": "fsdp2"}},
            "quantization": "4bit",
            "adapter": {"type": "lora", "use_dora": True},
        },
    ),
    generated(
        "more GPUs than there are",
        "error: generator.parallel.num_processes: 0 of other groups and 1 of the generator need 1 GPUs",
        changes={"generator": VLLM | {"parallel": {"device": "cuda"}}},
    ),
    generated(
        "drawing ahead where the policy must draw as it is",
        "error: generator.staleness: 1 is not supported with algorithm.dynamic_sampling",
        "error: generator.staleness: 1 is not supported with remax",
        changes={
            "stage": "rl",
            "ppo": None,
            "reward": None,
            "algorithm": {"type": "remax", "num_generations": 2, "dynamic_sampling": 1},
            "rollouts": {"num_rollouts": 2, "batch_size": 8, "max_new_tokens": 8},
            "rewards": [{"name": "own", **FUNCTION}],
            "generator": VLLM | {"staleness": 1},
        },
    ),
    generated(
        "an encoder-decoder",
        "error: generator.engine: vllm has no encoder-decoder models, as T5ForConditionalGeneration is",
        changes={"model": {"path": "builtin:tiny-t5"}},
        asks=True,
    ),
    generated(
        "a model that the environment's vllm does not know",
        "error: generator.engine: the vLLM of ",
        changes={"model": {"path": "builtin:tiny-gpt2"}},
        asks=True,
    ),
]

CASES = {"generator": GENERATORS}
