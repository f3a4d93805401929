"""A machine told of: what it becomes, what it is refused for, and a model of 70 billion parameters on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleup.config.load import load_leniently, load_mapping
from scaleup.errors import ScaleupError
from scaleup.plan.compute import Rate
from scaleup.plan.machine import described_machine
from scaleup.plan.resolve import resolve
from scaleup.reports.terminal import show_plan
from tests.cli import differing, scaleup, write_config
from tests.unit.plan.conftest import RAW

LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def test_nothing_told_is_this_machine() -> None:
    machine, overrides = described_machine(None, None, None, ["name=y"])
    assert (machine.is_described, overrides) == (False, ["name=y"])


def test_what_is_told() -> None:
    machine, overrides = described_machine(64, 80, 8, ["name=y"])
    assert (machine.num_gpus, machine.gpu_memory, machine.memory) == (8, 80 * 2**30, None)
    assert overrides[:2] == ["name=y", "parallel.device=cuda"]
    assert "parallel.num_processes=64" in overrides and "parallel.num_nodes=8" in overrides


@pytest.mark.parametrize(
    ("told", "where", "what"),
    [
        ((None, 80.0, None), "--gpus", "is needed"),
        ((8, None, None), "--gpu-memory", "is needed"),
        ((9, 80.0, 2), "--gpus", "9 do not divide over 2 nodes"),
    ],
)
def test_half_a_machine_is_refused(told: Any, where: str, what: str) -> None:
    with pytest.raises(ScaleupError) as caught:
        described_machine(*told, [])
    [problem] = caught.value.problems
    assert problem.where == where
    assert what in problem.what


@pytest.fixture
def config_file_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "llama").mkdir()
    (folder / "llama/config.json").write_text(json.dumps(LLAMA_70B))
    model = {"path": str(folder / "llama"), "tokenizer": "builtin:tiny-llama"}
    changes = {"train.per_device_train_batch_size": 1, "gradient_checkpointing": True, "mixed_precision": "bf16"}
    return differing(RAW, {"model": model, **changes})


@pytest.mark.slow
def test_70_billion_parameters_from_a_config_file_alone(
    config_file_alone: dict[str, Any], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_config(config_file_alone, folder)
    machine, changes = described_machine(64, 80, 8, ["parallel.strategy=auto"])
    _, plan = resolve(load_leniently(file, changes), machine, check_run_folder=False, rate=Rate(990.0))
    assert capfd.readouterr() == ("", ""), "a library says something when a model is made for the first time"
    assert plan.model.num_parameters == 70_553_706_496
    assert plan.model.untraced is None
    memory = {row.strategy: row for row in plan.memory}
    assert all(row.peak and row.peak >= row.weights + row.optimizer for row in plan.memory)
    assert plan.fitting is not None and "ddp" not in plan.fitting
    assert plan.groups[0].strategy == "fsdp2"
    assert memory["ddp"].weights == 4 * 70_553_706_496
    assert plan.compute is not None and plan.compute.hours is not None

    console = Console(width=200, record=True, file=(folder / "out").open("w"))
    show_plan(console, plan)
    shown = console.export_text()
    for words in (
        "activations",
        "logits",
        "peak",
        "fits",
        "fsdp2",
        "(this run)",
        "tokens per parameter",
        "40% of 64 x 990",
    ):
        assert words in shown, words


def test_weights_are_needed_to_run(config_file_alone: dict[str, Any]) -> None:
    with pytest.raises(ScaleupError, match="holds no weights"):
        resolve(load_mapping(config_file_alone), check_run_folder=False)


def test_the_command(folder: Path) -> None:
    file = write_config(RAW, folder)
    refused = scaleup("plan", file, "--gpus", "8", cwd=folder)
    assert refused.code == 2
    assert "--gpu-memory" in refused.stderr
