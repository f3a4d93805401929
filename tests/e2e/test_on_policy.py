"""On-policy distillation from the command line: what is learned, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from scaleup.models.builtin import build
from tests.cli import differing, interrupt, largest_weight_difference, losses, metrics, reached, run, worker_ids

pytestmark = pytest.mark.slow
CONFIG: dict[str, Any] = {
    "stage": "distill",
    "name": "on-policy",
    "model": {"path": "builtin:tiny-llama"},
    "teacher": {"path": "builtin:tiny-qwen2"},
    "distill": {
        "mode": "on_policy",
        "divergence": "reverse_kl",
        "alpha": 1,
        "generation": {"temperature": 1, "max_new_tokens": 8},
    },
    "data": {
        "train": [{"path": "one.jsonl", "weight": 2}, "two.jsonl"],
        "validation": "held.jsonl",
        "prompt": "{ask}",
        "max_length": 32,
    },
    "train": {
        "max_steps": 24,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_steps": 12,
        "save_steps": 4,
    },
}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, count in (("one", 30), ("two", 10), ("held", 8)):
        rows = [json.dumps({"ask": f"{name} film {number}:"}) + "\n" for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


@pytest.mark.timeout(300)
def test_the_student_comes_closer_to_its_teacher_on_answers_of_its_own(place: Path) -> None:
    folder = run(CONFIG, cwd=place)
    found = losses(folder)
    assert sorted(found) == list(range(1, 25))
    first, last = (sum(found[step] for step in steps) / 4 for steps in (range(1, 5), range(21, 25)))
    assert last < 0.8 * first
    lines = metrics(folder)
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(held_out) == 2 and held_out[1] < held_out[0]
    trained = [line for line in lines if "loss" in line]
    assert trained[0]["completions/mean_length"] <= 8 and 0 <= trained[0]["completions/clipped_ratio"] <= 1
    assert trained[-1]["num_tokens"] > trained[0]["num_tokens"] > 0

    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.model_type == "llama"


def padded(folder: Path) -> None:
    """The tiny Llama, with 61 embeddings more than its tokenizer has tokens, all of them likely."""
    from transformers import AutoModelForCausalLM

    build("tiny-llama", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[259:] = 3.0
    model.save_pretrained(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "which", ["none", *(pytest.param(name, marks=pytest.mark.long) for name in ("teacher", "model"))]
)
def test_a_teacher_like_its_student_teaches_nothing(place: Path, which: str) -> None:
    """The divergence of two equal distributions, and its gradient; also where one has padding."""
    padded(place / "padded")
    changes = {
        "name": "same",
        "teacher": {"path": "builtin:tiny-llama"},
        **({} if which == "none" else {f"{which}.path": "padded"}),
        "train.max_steps": 2,
        "train.eval_steps": None,
    }
    folder = run(differing(CONFIG, changes), cwd=place)
    trained = [line for line in metrics(folder) if "loss" in line]
    assert [line["loss"] for line in trained] == pytest.approx([0, 0], abs=1e-6)
    assert [line["grad_norm"] for line in trained] == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.timeout(600)
def test_killed_and_resumed_is_straight(place: Path) -> None:
    """Two processes; a worker is killed at step 9, and the run goes on from step 8."""
    changes: dict[str, Any] = {"adapter": {"type": "lora", "r": 4}, "parallel": {"strategy": "ddp", "num_processes": 2}}
    changes |= {"train.per_device_train_batch_size": 2, "train.max_steps": 12}
    straight = run(differing(CONFIG, {**changes, "name": "straight"}), cwd=place)
    killed = differing(CONFIG, {**changes, "name": "killed"})
    stopped = interrupt(killed, cwd=place, when=reached(9), do=lambda process, folder: kill(worker_ids(folder)[1]))
    assert stopped.code == 1, stopped.stderr
    folder = run(killed, "--resume", cwd=place)
    assert sorted(losses(folder)) == list(range(1, 13))
    assert losses(folder) == pytest.approx(losses(straight), rel=1e-5)
    assert largest_weight_difference(folder, straight, "model/*model.safetensors") < 1e-6
