"""`evaluation.tasks`: what lm-evaluation-harness tells of each document is what it tells without us, of a base and an
adapter, on one process and two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.models.sources import materialize
from tests.cli import logs, scaleup, write_config

WORDS = ("film", "day", "song", "book", "trip")
DOCS = [
    {"question": f"The {word} was {how}. Good or bad?", "choices": ["good", "bad"], "answer": number}
    for word in WORDS
    for number, how in enumerate(("fine", "poor"))
]
COMMON: dict[str, Any] = {
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "test",
    "doc_to_text": "{{question}}\nAnswer:",
    "metadata": {"version": 1},
}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
}
SETTINGS: dict[str, Any] = {"num_fewshot": 2, "max_samples": 7, "batch_size": 3, "bootstrap_samples": 100}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks, rows and a random adapter of tiny-llama."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("docs", "rows"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(folder / "docs.jsonl")}}
        content = {"task": name, "dataset_kwargs": files, **COMMON, **task}
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    model = AutoModelForCausalLM.from_pretrained(materialize("builtin:tiny-llama"))
    get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).save_pretrained(
        folder / "adapter"
    )
    return folder


def evaluated(place: Path, name: str, *overrides: str, **changes: Any) -> Path:
    config: dict[str, Any] = {
        "stage": "evaluate",
        "name": name,
        "model": {"path": "builtin:tiny-llama"},
        "data": {},
        "evaluation": {"metrics": [], "tasks": ["./tasks"], **SETTINGS},
        **changes,
    }
    result = scaleup("evaluate", write_config(config, place), *overrides, cwd=place)
    assert result.code == 0, f"{result.stderr}\n{logs(place / 'runs' / name)}"
    return place / "runs" / name


def samples_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Documents, prompts and metrics are the same, and likelihoods up to the rounding of other batches."""
    assert len(found) == len(expected) == SETTINGS["max_samples"]
    for mine, theirs in zip(found, expected, strict=True):
        keys = mine.keys() - {"resps", "filtered_resps"}
        assert {key: mine[key] for key in keys} == {key: theirs[key] for key in keys}
        for (my_texts,), (their_texts,) in zip(mine["resps"], theirs["resps"], strict=True):
            if isinstance(my_texts, str):
                assert my_texts == their_texts
            else:
                assert float(my_texts[0]) == pytest.approx(float(their_texts[0]), abs=1e-4)
                assert my_texts[1] == their_texts[1]


def harness_alone(place: Path, adapter: str | None, folder: Path) -> dict[str, Any]:
    """The harness's results for a model that it loads itself; its samples in `folder`, written by itself."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    model = f"pretrained={materialize('builtin:tiny-llama')}" + (f",peft={adapter}" if adapter else "")
    results = simple_evaluate(
        "hf",
        model_args=model,
        tasks=[str(place / "tasks" / f"{name}.yaml") for name in TASKS],
        device="cpu",
        batch_size=SETTINGS["batch_size"],
        num_fewshot=SETTINGS["num_fewshot"],
        limit=SETTINGS["max_samples"],
        bootstrap_iters=SETTINGS["bootstrap_samples"],
        task_manager=TaskManager(include_defaults=False),
    )
    assert results is not None
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.date_id = "x"
    for name in TASKS:
        tracker.save_results_samples(name, results["samples"][name])
    return results["results"]


def test_two_processes_tell_what_the_harness_tells(place: Path, tmp_path: Path) -> None:
    """Beside a metric of rows, of the base and of its adapter."""
    rows = {"test": "rows.jsonl", "prompt": "{question}", "max_length": 64}
    run = evaluated(
        place,
        "two",
        "parallel.num_processes=2",
        "evaluation.metrics=[length]",
        adapters={"lora": "./adapter"},
        data=rows,
        generation={"max_new_tokens": 2},
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() == {"baseline", "lora"}
    for column, adapter in {"baseline": None, "lora": str(place / "adapter")}.items():
        expected = harness_alone(place, adapter, tmp_path / column)
        assert metrics[column]["length_words"] is not None
        for name, metric in (("choice", "acc"), ("choice", "acc_norm"), ("written", "exact_match")):
            value, error = (expected[name][f"{metric}{which},none"] for which in ("", "_stderr"))
            assert metrics[column][f"{name}/{metric}"] == pytest.approx(value)
            assert metrics[column][f"{name}/{metric}_stderr"] == pytest.approx(error)
            assert metrics[column][f"{name}/{metric}_interval"] == pytest.approx(
                [value - 1.96 * error, value + 1.96 * error]
            )
        for name in TASKS:
            (file,) = (tmp_path / column).rglob(f"samples_{name}_*.jsonl")
            assert_same(samples_of(run / "samples" / column / f"{name}.jsonl"), samples_of(file))
    base, lora = (samples_of(run / f"samples/{column}/choice.jsonl") for column in metrics)
    assert base[0]["resps"] != lora[0]["resps"], "the adapter does something"


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.long) for name in ("several-files", "adapter")] + ["seq2seq", "8bit"],
)
def told(request: pytest.FixtureRequest, place: Path) -> tuple[str, Path]:
    """The path of a model, and the folder that the harness's command line wrote of it."""
    if request.param == "adapter":
        path = str(place / "adapter")
        model = f"pretrained={materialize('builtin:tiny-llama')},peft={path}"
    elif request.param == "seq2seq":
        path = "builtin:tiny-t5"
        model = f"pretrained={materialize(path)}"
    else:
        path = str(in_several_files(place) if request.param == "several-files" else in_8_bits(place))
        model = f"pretrained={path}"
    folder = place / f"told-{request.param}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model, "--log_samples"]
    command += ["--tasks", "choice,written", "--include_path", str(place / "tasks"), "--output_path", str(folder)]
    command += ["--num_fewshot", "2", "--limit", "7", "--batch_size", "3", "--device", "cpu"]
    subprocess.run(command, check=True, cwd=place, timeout=240)
    return path, folder


def in_several_files(place: Path) -> Path:
    """Saves tiny-llama with its weights in several files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, folder = materialize("builtin:tiny-llama"), place / "several"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder, max_shard_size="60KB")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def in_8_bits(place: Path) -> Path:
    """Quantizes tiny-llama."""
    rows = {"test": "rows.jsonl", "prompt": "{question}", "completion": " {answer}"}
    config = {"stage": "quantize", "name": "int8", "model": {"path": "builtin:tiny-llama"}, "data": rows}
    result = scaleup("run", write_config({**config, "quantize": {"method": "int8_weight_only"}}, place), cwd=place)
    assert result.code == 0, result.stderr
    return place / "runs/int8/model"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_samples_are_those_of_its_command_line(told: tuple[str, Path], processes: int, place: Path) -> None:
    path, folder = told
    number = f"parallel.num_processes={processes}"
    run = evaluated(place, f"{folder.name}-{processes}", number, f"model.path={path}")
    for task in TASKS:
        (file,) = folder.rglob(f"samples_{task}_*.jsonl")
        assert_same(samples_of(run / "samples/model" / f"{task}.jsonl"), samples_of(file))


def test_data_that_cannot_be_had_is_refused_before_a_model_loads(place: Path) -> None:
    task = {"task": "gone", "dataset_kwargs": {"data_files": {"test": "/no/such.jsonl"}}, **COMMON, **TASKS["choice"]}
    (place / "gone.yaml").write_text(yaml.safe_dump(task))
    config = {
        "stage": "evaluate",
        "name": "absent",
        "model": {"path": "builtin:tiny-llama"},
        "data": {},
        "evaluation": {"metrics": [], "tasks": ["gone.yaml"]},
    }
    result = scaleup("evaluate", write_config(config, place), cwd=place)
    assert result.code != 0
    assert "evaluation.tasks:" in result.stderr and "gone.yaml cannot be loaded: FileNotFoundError" in result.stderr
    assert "Traceback" not in result.stderr
    assert "loading model" not in result.stdout + result.stderr
