"""Of where the rewards of stage rl come from: functions, those that come with the package, judges, several groups."""

from __future__ import annotations

from typing import Any

from tests.e2e.mistakes.case import Case, bad
from tests.e2e.mistakes.ppo import rewards

FUNCTION: dict[str, Any] = {"name": "f", "placement": "function", "function": "rewards.py:score"}
JUDGE: dict[str, Any] = {"name": "j", "placement": "http", "url": "http://localhost:1/v1", "format": "openai"}
GROUP: dict[str, Any] = {"name": "g", "model": {"path": "builtin:tiny-bert-classifier"}, "label": "positive"}
RL: dict[str, Any] = {
    "stage": "rl",
    "data.validation": None,
    "data.completion": None,
    "train.max_steps": None,
    "algorithm": {"type": "rloo", "num_generations": 2},
    "rollouts": {"num_rollouts": 2, "batch_size": 8, "max_new_tokens": 8},
}


def rewarded(name: str, sources: list[dict[str, Any]], *lines: str, **rest: Any) -> Case:
    """A mistake in the rewards of a good run."""
    changes = {**RL, "rewards": sources, **rest.pop("changes", {})}
    return bad(name, *lines, changes=changes, **{"prepare": rewards(), **rest})


def builtin(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "placement": "function", "function": f"builtin:{name}", "arguments": arguments}


SOURCES = [
    rewarded(
        "names, weights and ports",
        [
            FUNCTION,
            FUNCTION | {"weight": 0},
            GROUP | {"name": "a-rank0", "bridge_port": 4000},
            GROUP | {"bridge_port": 4000},
        ],
        "error: rewards.1.name: two rewards are called f -> give each its own name",
        "error: rewards.1.weight: is 0, so its scores count for nothing",
        "error: rewards.3.bridge_port: 4000 is rewards.2.bridge_port too -> give each group a port of its own",
        "error: rewards.2.name: 'a-rank0' holds -rank, which comes after the group's name",
    ),
    rewarded(
        "built-in rewards",
        [
            builtin("lengths"),
            builtin("regex"),
            builtin("regex", pattern="[") | {"name": "r"},
            builtin("length", targets=3),
            builtin("repetition", ngram_size=2.5, max_penalty=True),
            builtin("format", completions="a"),
        ],
        "error: rewards.0.function: there is no built-in reward lengths -> did you mean 'length'?",
        "error: rewards.1.arguments.pattern: is needed by builtin:regex -> give it",
        "error: rewards.2.arguments.pattern: '[' is no regular expression: unterminated character set",
        "error: rewards.3.arguments.targets: builtin:length takes no such argument -> did you mean 'target'?",
        "error: rewards.4.arguments.ngram_size: 2.5 is no int",
        "error: rewards.4.arguments.max_penalty: True is no float",
        "error: rewards.5.arguments.completions: is what the rows give -> choose another name",
    ),
    rewarded(
        "what a function does not take",
        [FUNCTION | {"arguments": {"factr": 2}, "reconnect_seconds": 3, "judge": {"model": "m"}}],
        "error: rewards.0.judge: has no meaning for placement function",
        "error: rewards.0.reconnect_seconds: has no meaning for placement function",
        "error: rewards.0.arguments.factr: score takes no such argument -> did you mean 'factor'?",
        prepare=rewards("async def score(completions, factor=1):\n    return [1.0] * len(completions)\n"),
    ),
    rewarded(
        "a judge without a model",
        [JUDGE],
        "error: rewards.0.judge: is needed by rewards.0.format: openai -> give at least the model that is asked",
    ),
    rewarded(
        "a judge that cannot be asked",
        [
            JUDGE | {"judge": {"model": "m", "template": "{prompt} {answer}", "pattern": "(", "api_key_env": "NO_KEY"}},
            JUDGE | {"name": "k", "judge": {"model": "m", "api_key_env": "NO_KEY", "api_key_file": "key.txt"}},
            JUDGE | {"name": "l", "format": "scores", "judge": {"model": "m"}, "retries": 2},
        ],
        "error: rewards.0.judge.template: has no field 'answer' -> write {prompt} and {response}",
        "error: rewards.0.judge.template: does not hold {response}",
        "error: rewards.0.judge.pattern: '(' is no regular expression",
        "error: rewards.0.judge.api_key_env: NO_KEY is not set here -> export it before the run",
        "error: rewards.1.judge.api_key_file: is a second place of the key",
        "error: rewards.1.judge.api_key_env: NO_KEY is not set here",
        "error: rewards.1.judge.api_key_file: there is no file",
        "error: rewards.2.judge: has no meaning for format scores -> use rewards.2.format: openai",
        "error: rewards.2.retries: has no meaning for placement http",
    ),
    rewarded(
        "two groups on GPUs that are not there",
        [GROUP | {"parallel": {"device": "cuda"}}, GROUP | {"name": "h", "parallel": {"num_nodes": 2}}],
        "error: rewards.1.parallel.num_nodes: a reward group is on one node",
        "error: rewards.0.parallel.num_processes: 1 processes need 1 GPUs, and this machine has 0 -> use fewer "
        "processes, rewards.0.parallel.device: cpu, or rewards.0.placement: colocated",
    ),
]

CASES = {"rewards of rl": SOURCES}
