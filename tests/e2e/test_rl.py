"""Reinforcement learning from the command line: what a run of configs/rl leaves is an ordinary model, and true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from tests.cli import metrics, scaleup

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.covers("rl")
def test_the_tiny_config_leaves_a_policy(tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs/rl/tiny.yaml").read_text(encoding="utf-8"))
    (tmp_path / "rl.yaml").write_text(json.dumps(config | {"runs_dir": "runs"}))
    placed = [
        "rewards.0.placement=colocated",
        f"data.root={REPOSITORY / 'data'}",
        "parallel.num_processes=1",
        "parallel.strategy=single",
    ]
    done = scaleup("run", "rl.yaml", *placed, "rewards.0.parallel={}", cwd=tmp_path)
    assert done.code == 0, done.stderr
    folder = tmp_path / "runs/rl-tiny"
    lines = metrics(folder)
    assert [line["step"] for line in lines if "reward" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "eval/scores" in line] == [0, 5]
    assert lines[1]["kl_response"] == pytest.approx(0, abs=1e-4) and lines[-2]["kl_response"] != 0
    assert AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters() > 50_000
    assert not (folder / "values").exists(), "GRPO has none"
    assert (folder / "samples.md").read_text().count("\n") == 2 + 8
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["metrics"]["held_out_after"] == pytest.approx(lines[-1]["eval/scores"])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_verifiable_reward_teaches_sums(tmp_path: Path) -> None:
    """A sixth of the config's rollouts: sums that are held out are right three times as often, or better."""
    config = REPOSITORY / "configs/rl/sums.yaml"
    shorter = ["rollouts.num_rollouts=4", f"runs_dir={tmp_path}", "train.eval_steps=4"]
    done = scaleup("run", config, *shorter, cwd=REPOSITORY, timeout=540)
    assert done.code == 0, done.stderr
    before, after = (line["eval/scores"] for line in metrics(tmp_path / "rl-sums") if "eval/scores" in line)
    assert before < 0.25 and after > 3 * before
