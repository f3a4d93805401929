"""Cut and recovered in two rounds through the command line: under FSDP2, and under DDP stopped in the middle and
resumed, the same model; and the control beside it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.cli import differing, interrupt, largest_weight_difference, reached, run

pytestmark = pytest.mark.slow
CONFIG: dict[str, Any] = {
    "stage": "prune",
    "name": "straight",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "test": "held.jsonl", "text": "{text}", "max_length": 32},
    "prune": {"intermediate_size": 64, "num_key_value_heads": 1, "rounds": 2, "calibration_rows": 8},
    "recovery": {
        "train": {"max_steps": 4, "learning_rate": 0.1, "optimizer": "sgd", "per_device_train_batch_size": 2},
        "distill": {"temperature": 2.0, "hidden": {"weight": 0.5}},
    },
    "parallel": {"strategy": "fsdp2", "num_processes": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    rows = [{"text": f"film {number} was {'good' * (number % 4)}"} for number in range(24)]
    for name, part in (("rows", rows[:16]), ("held", rows[16:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def straight(place: Path) -> Path:
    return run(CONFIG, cwd=place)


def test_what_comes_of_it(straight: Path) -> None:
    metrics = json.loads((straight / "manifest.json").read_text())["metrics"]
    sizes = [json.loads((straight / f"distilled/{n}/pruned/config.json").read_text()) for n in (1, 2)]
    assert [size["intermediate_size"] for size in sizes] == [96, 64]
    assert sizes[1]["num_key_value_heads"] == 1
    assert metrics["num_parameters_after"] < metrics["num_parameters_before"]
    assert metrics["perplexity_distilled_2"] < metrics["perplexity_after"], "training helps"
    assert metrics["perplexity_control_2"] < metrics["perplexity_after"]
    model, last, control = (
        load_file(straight / f"{folder}/model.safetensors")
        for folder in ("model", "distilled/2/trained/model", "control/2/trained/model")
    )
    assert all(weight.equal(last[name]) for name, weight in model.items())
    assert any(not weight.equal(last[name]) for name, weight in control.items())
    assert not (straight / "control/1/pruned").exists(), "the first cut is the same"
    card = (straight / "model/README.md").read_text()
    assert "taught by it in 2 rounds" in card and f"| {metrics['perplexity_distilled_2']} |" in card


def test_stopped_and_resumed_elsewhere_it_is_the_same_model(straight: Path, place: Path) -> None:
    config = differing(CONFIG, {"name": "stopped", "parallel.strategy": "ddp", "recovery.control": False})
    within = reached(2)
    done = interrupt(
        config,
        cwd=place,
        when=lambda folder: within(folder / "distilled/1/trained"),
        do=lambda process, folder: process.send_signal(signal.SIGTERM),
    )
    assert done.code == 75, done.stderr
    folder = run(config, "--resume", cwd=place)
    assert largest_weight_difference(folder, straight, "model/model.safetensors") < 1e-5
