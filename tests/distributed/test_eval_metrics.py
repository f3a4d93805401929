"""`train.eval_metrics`: a model in training answers validation rows under every strategy; its answers, their figures
and the best weights by them are those of one process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli import largest_weight_difference, losses, metrics
from tests.forked_runs import SHARED, four_steps, train

pytestmark = pytest.mark.slow
METRICS = ["exact_match", "rouge", "chrf", "length", "distinct", "own.py:vowels"]
FIGURES = {f"eval_{name}" for name in ("exact_match", "rouge1", "rougeL", "chrf", "length_characters", "vowels")}
SHARDED = ("zero3", "fsdp2")


@dataclass(frozen=True)
class Trial:
    strategy: str
    stage: str = "sft"
    model: str = "llama"
    adapter: str | None = None
    gathers: bool | str = "auto"
    kind: str | None = None

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        return Trial("single", self.stage, self.model, self.adapter, kind=self.kind)


EQUAL = [
    *(Trial(strategy) for strategy in SHARED),
    *(Trial(strategy, gathers=False) for strategy in SHARDED),
    *(Trial(strategy, model="t5") for strategy in ("ddp", *SHARDED)),
    *(Trial(strategy, adapter="lora") for strategy in ("zero2", *SHARDED)),
    *(Trial(strategy, stage="dpo") for strategy in ("ddp", *SHARDED)),
    *(Trial(strategy, kind="kl") for strategy in ("ddp", "fsdp2")),
    Trial("ddp", adapter="prompt_tuning"),
]
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL]))


def config_of(trial: Trial) -> dict[str, Any]:
    processes = 1 if trial.strategy == "single" else 2
    steps = four_steps(processes) | {
        "eval_metrics": METRICS,
        "eval_answers": 7,
        "metric_for_best_model": "length_characters",
        "greater_is_better": False,
        "load_best_model_at_end": True,
        "eval_steps": 1,
    }
    lora = {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
    adapter = {"lora": lora, "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 4}, None: None}
    pairs = {"prompt": "Say {text}", "chosen": "{answer}", "rejected": " not {text}"}
    texts = {"prompt": "Say {text}", "completion": "{answer}"}
    config = {
        "stage": trial.stage,
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "data": {
            "train": "new.jsonl",
            "validation": "held.jsonl",
            **(pairs if trial.stage == "dpo" else texts),
            "max_length": 32,
        },
        "generation": {"max_new_tokens": 5, "temperature": 1.0},
        "adapter": adapter[trial.adapter],
        "train": steps,
        "parallel": {
            "strategy": trial.strategy,
            "num_processes": processes,
            "device": "cpu",
            "gather_for_generation": trial.gathers,
        },
    }
    if trial.kind is not None:
        config["regularization"] = {"type": trial.kind, "weight": 1.0}
        config["data"]["regularization"] = "new.jsonl"
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("eval_metrics")
    for name, count in (("new", 12), ("held", 9)):
        rows = [{"text": f"{name} {n} {'very ' * (n % 4)}", "answer": f" {name[: n % 3 + 1]}"} for n in range(count)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (place / "own.py").write_text(
        "def vowels(predictions, references, prompts):\n"
        "    assert all(prompt.startswith('Say held') for prompt in prompts) and len(prompts) == 7\n"
        "    assert all(text in 'held' for text in references)\n"
        "    return [float(sum(letter in 'aeiou' for letter in text)) for text in predictions]\n"
    )
    return train({trial.name: config_of(trial) for trial in TRIALS}, place, timeout=600)


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_answers_are_those_of_one_process(runs: dict[str, Path], trial: Trial) -> None:
    alone, shared = runs[trial.alone.name], runs[trial.name]
    assert losses(shared) == pytest.approx(losses(alone), rel=2e-5), "answering changes nothing of the training"
    evaluated = [line for line in metrics(alone) if "eval_loss" in line]
    assert len(evaluated) == 4 and all(line.keys() >= FIGURES for line in evaluated)
    for one, other in zip(evaluated, (line for line in metrics(shared) if "eval_loss" in line), strict=True):
        for key in (key for key in one if key.startswith("eval_")):
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-6), key
    ends = [json.loads((run / "manifest.json").read_text())["metrics"] for run in (alone, shared)]
    best = min(evaluated, key=lambda line: line["eval_length_characters"])
    assert ends[0]["best_step"] == ends[1]["best_step"] == best["step"]
    assert ends[0]["best_eval_length_characters"] == best["eval_length_characters"]
    assert largest_weight_difference(alone, shared) < 1e-5
