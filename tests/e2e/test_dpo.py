"""Learning from preferences through the command line prefers what it should. Killed and gone on with, it is the run
that was never killed: also of an adapter trained before, whose reference is what it was when the run began."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from scaleup.reports.comparison import compare_columns
from scaleup.reports.evaluations import read_columns
from tests.cli import largest_weight_difference, losses, metrics, run, scaleup
from tests.distributed.test_dpo import Trial, config_of
from tests.forked_runs import Leg, live, train

pytestmark = pytest.mark.covers("dpo")


def test_it_prefers_the_chosen_of_rows_that_it_has_not_seen(tmp_path: Path) -> None:
    for name in ("rows", "held"):
        rows = [{"prompt": f"{name} {n}?", "good": " yes", "bad": " no"} for n in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": "rows.jsonl", "validation": "held.jsonl", "test": "held.jsonl"}
    data |= {"chosen": "{good}", "rejected": "{bad}"}
    config = {
        "stage": "dpo",
        "name": "prefers",
        "model": {"path": "builtin:tiny-llama"},
        "data": {**data, "prompt": "{prompt}", "max_length": 32},
        "train": {"max_steps": 8, "learning_rate": 3e-3, "per_device_train_batch_size": 8, "eval_steps": 4},
        "parallel": {"strategy": "single"},
    }
    done = run(config, cwd=tmp_path)
    told = [line for line in metrics(done) if "eval_rewards/accuracies" in line]
    assert [line["step"] for line in told] == [4, 8]
    assert told[-1]["eval_rewards/accuracies"] == 1
    assert told[-1]["eval_rewards/margins"] > 0.1
    assert told[-1]["eval_loss"] < 0.6
    measured = scaleup("evaluate", done, cwd=tmp_path)
    assert measured.code == 0, measured.stdout + measured.stderr
    before, after = json.loads((done / "evaluations/1/metrics.json").read_text()).values()
    assert before["pairs"] == after["pairs"] == 16
    assert after["reward_accuracy"] == after["likelier"] == 1
    assert 0.1 * after["reward_margin"] == pytest.approx(told[-1]["eval_rewards/margins"], rel=1e-4)
    assert after["logps_chosen"] == pytest.approx(told[-1]["eval_logps/chosen"], rel=1e-4)
    assert before["reward_margin"] == 0
    scored = [json.loads(line) for line in (done / "evaluations/1/predictions.jsonl").read_text().splitlines()]
    assert np.mean([row["model"]["chosen_logp"] for row in scored]) == pytest.approx(after["logps_chosen"])
    columns, rows = read_columns([str(done / "evaluations/1")])
    compared = compare_columns(columns, rows, ["reward_margin"])
    assert compared.wins["reward_margin"]["model"].wins == 16, "what is chosen became likelier in every pair"
    assert compared.figures["reward_accuracy"]["model"].difference == 0.5, "the model itself has a margin of 0: a tie"


@pytest.mark.slow
def test_responses_that_are_desirable_become_likelier_than_others(tmp_path: Path) -> None:
    """By KTO, whose reference is asked once, before training. What it said is read again by a run that goes on."""
    for name in ("rows", "held"):
        rows = [{"prompt": f"{name} {n}?", "completion": (" no", " yes")[n % 2], "label": n % 2 > 0} for n in range(16)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "stage": "dpo",
        "name": "desires",
        "model": {"path": "builtin:tiny-llama"},
        "data": {"train": "rows.jsonl", "validation": "held.jsonl", "max_length": 32},  # what rows hold, columns tell
        "dpo": {"loss": "kto", "reference": "cached"},
        "train": {"max_steps": 8, "learning_rate": 3e-3, "per_device_train_batch_size": 8, "eval_steps": 4},
        "parallel": {"strategy": "single"},
    }
    done = run(config, cwd=tmp_path)
    told = [line for line in metrics(done) if "eval_rewards/margins" in line]
    assert [line["step"] for line in told] == [4, 8]
    assert told[-1]["eval_rewards/margins"] > 0.1
    assert told[-1]["eval_loss"] < told[0]["eval_loss"] < 0.5
    assert load_file(done / "reference.safetensors")["logps"].shape == (32, 2)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_and_resumed_is_straight(tmp_path: Path) -> None:
    for name in ("rows", "held"):
        rows = [
            {"prompt": f"{name} {n}", "good": " yes" * (1 + n % 3), "bad": " no" * (1 + n % 4), "wanted": n % 3 > 0}
            for n in range(8)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first = config_of(Trial("llama", "single", "lora"))
    before = train({"before": {**first, "name": "before"}}, tmp_path)["before"]
    further = {**first, "model": {"path": str(before / "model")}, "adapter": None}
    lives: dict[str, list[Leg]] = {}
    kinds = {
        "copy": config_of(Trial("llama", "ddp")),
        "further": further,
        "kto": config_of(Trial("llama", "ddp", loss="kto", reference="cached")),
    }
    for kind, config in kinds.items():
        config["train"] = {**config["train"], "max_steps": 8, "save_steps": 2, "async_save": False}
        straight, killed = ({**config, "name": f"{kind}-{how}"} for how in ("straight", "killed"))
        lives |= {f"{kind}-straight": [Leg(straight)], f"{kind}-killed": [Leg(killed, kill_after=3), Leg(killed)]}
    went_on = live(lives, tmp_path)
    for kind in kinds:
        straight, killed = (tmp_path / "runs" / f"{kind}-{how}" for how in ("straight", "killed"))
        assert went_on[f"{kind}-killed"][-1] > 0, "it went on from a checkpoint"
        start = 0.5 if kind == "kto" else 0.6931472
        assert losses(straight)[1] == pytest.approx(start, abs=1e-6), "it began as its reference"
        assert losses(killed) == losses(straight)
        assert largest_weight_difference(killed, straight) == 0
    files = {path.name for path in (tmp_path / "runs/further-straight/model").iterdir()}
    assert "start" not in files, "the reference is not saved"
    assert largest_weight_difference(tmp_path / "runs/further-straight", before) > 1e-4
