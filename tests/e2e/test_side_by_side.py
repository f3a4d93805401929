"""Several adapters of one base in one evaluation and one generation: each says what it says alone."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from scaleup.plan.derive import evaluation_config, generation_config
from tests.cli import differing, scaleup, write_config
from tests.forked_runs import train

pytestmark = pytest.mark.slow
PROMPTS = ["abcab:", "x:"]
CONFIG: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {
        "train": "rows.jsonl",
        "test": "held.jsonl",
        "prompt": "{word}:",
        "completion": " {answer}",
        "max_length": 64,
    },
    "train": {"max_steps": 8, "learning_rate": 2e-2, "per_device_train_batch_size": 4},
    "evaluation": {"metrics": ["perplexity", "exact_match", "rouge"]},
    "generation": {"max_new_tokens": 6},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "one": {"adapter": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}},
    "v2.0": {"adapter": {"type": "lora", "modules_to_save": ["lm_head"]}, "train.seed": 3},
    "t5-a": {"adapter": {"type": "lora", "r": 4}, "model.path": "builtin:tiny-t5"},
    "t5-b": {"adapter": {"type": "lora", "use_dora": True}, "model.path": "builtin:tiny-t5", "train.seed": 1},
}
BASES = {"builtin:tiny-llama": ("one", "v2.0"), "builtin:tiny-t5": ("t5-a", "t5-b")}
SAMPLED = ("generation.temperature=0.8",)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("adapters"), random.Random(0)
    for name, count in (("rows", 20), ("held", 9)):
        rows = [{"word": "".join(chance.choices("abcx", k=5)), "answer": chance.choice("pq") * 3} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Path]:
    """Each adapter, trained, evaluated and asked alone."""
    found = train({name: differing(CONFIG | {"name": name}, ADAPTERS[name]) for name in ADAPTERS}, place)
    alone = {f"{name} evaluated": evaluation_config(folder, SAMPLED) for name, folder in found.items()}
    alone |= {f"{name} asked": generation_config(folder, (), PROMPTS) for name, folder in found.items()}
    train({what: loaded.config.model_dump(mode="json") for what, loaded in alone.items() if loaded.config}, place)
    return found


def together(stage: str, base: str, runs: dict[str, Path], place: Path) -> tuple[Path, str]:
    """The folder of one run with all adapters of a base, and what it printed."""
    config = {key: value for key, value in CONFIG.items() if key != "train"} | {
        "stage": stage,
        "name": f"{stage}-{base.rpartition('-')[2]}",
        "model": {"path": base},
        "adapters": {name: str(runs[name].relative_to(place)) for name in BASES[base]},
    }
    if stage == "generate":
        config["generation"] = {"max_new_tokens": 6, "prompts": PROMPTS}
    sampled = SAMPLED if stage == "evaluate" else ()
    result = scaleup(stage, write_config(config, place), *sampled, cwd=place)
    assert result.code == 0, result.stderr
    return place / "runs" / config["name"], result.stdout


def read(file: Path) -> Any:
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else []
    return [json.loads(line) for line in lines] if lines else json.loads(file.read_text())


def flat(figures: dict[str, Any]) -> dict[str, float]:
    """Figures, and the edges of their intervals, a number each."""
    return {
        f"{name}.{place}": number
        for name, value in figures.items()
        for place, number in enumerate(value if isinstance(value, list) else [value])
    }


@pytest.mark.parametrize("base", BASES)
def test_each_adapter_s_numbers_are_those_of_evaluating_it_alone(base: str, runs: dict[str, Path], place: Path) -> None:
    folder, shown = together("evaluate", base, runs, place)
    found, answers = read(folder / "metrics.json"), read(folder / "predictions.jsonl")
    assert list(found) == ["baseline", *BASES[base]], "a column each, the base's first"
    assert all(word in shown for word in ("before", *BASES[base], "perplexity", "rougeL"))
    for name in BASES[base]:
        alone = runs[name] / "evaluations/1"
        expected = read(alone / "metrics.json")
        assert found[name].pop("rouge_tokenizer") == expected["model"].pop("rouge_tokenizer")
        assert flat(found[name]) == pytest.approx(flat(expected["model"]), rel=1e-6)
        assert found["baseline"] == expected["baseline"]
        assert [row[name] for row in answers] == [row["model"] for row in read(alone / "predictions.jsonl")]
        assert [row["baseline"] for row in answers] == [row["baseline"] for row in read(alone / "predictions.jsonl")]
    losses = [column["loss"] for column in found.values()]
    assert min(abs(one - other) for one, other in pairwise(losses)) > 1e-2, "they differ"


@pytest.mark.parametrize("base", BASES)
def test_each_adapter_answers_every_prompt_as_it_does_alone(base: str, runs: dict[str, Path], place: Path) -> None:
    folder, shown = together("generate", base, runs, place)
    answers = read(folder / "generations.jsonl")
    assert [list(row) for row in answers] == [["id", "prompt", *BASES[base]]] * len(PROMPTS)
    for name in BASES[base]:
        alone = read(runs[name] / "generations/1/generations.jsonl")
        assert [row[name] for row in answers] == [row["completion"] for row in alone]
        assert all(f"  {name}: {row[name]}" in shown for row in answers)


def test_an_adapter_of_another_base_is_refused(runs: dict[str, Path], place: Path) -> None:
    """By name, before anything is started: an evaluation, and a training that would go on from it."""
    folder = runs["t5-a"]
    evaluation = {**CONFIG, "stage": "evaluate", "name": "mixed", "adapters": {"a": str(folder)}}
    del evaluation["train"]
    training = {**CONFIG, "name": "onward", "adapter": {"type": "lora", "path": str(folder)}}
    for command, config, key in (("evaluate", evaluation, "adapters.a"), ("run", training, "adapter.path")):
        result = scaleup(command, write_config(config, place), cwd=place)
        assert result.code == 2 and not (place / "runs" / str(config["name"])).exists()
        [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: {key}: ") and "name the base model that it was trained on" in line
