"""A real vLLM through the command line: the doctor sees it, and a run by it that is killed and continued ends like one
without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import small_runs
from tests.cli import differing, folder_of, interrupt, metrics, reached, run, scaleup, write_config
from tests.engine_runs import loaded
from tests.small_runs import same_rollouts, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
ROLLOUTS = 8
PPO = differing(
    small_runs.PPO,
    {"ppo.num_rollouts": ROLLOUTS, "train.learning_rate": 1e-4, "reward.placement": "colocated", "model.path": "tiny"},
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with rows, and a model whose heads vLLM takes on a CPU."""
    write_rows(tmp_path)
    for part in loaded("tiny-qwen2"):
        part.save_pretrained(tmp_path / "tiny")
    return tmp_path


def test_a_run_by_vllm_that_is_killed_goes_on_as_one_without_it(place: Path, python: Path) -> None:
    config = PPO | {"name": "drawn", "generator": {"engine": "vllm", "python": str(python), "kv_cache_gib": 1}}
    examined = scaleup("doctor", write_config(config, place), "--json", cwd=place)
    found = {row["name"]: row for row in json.loads(examined.stdout)}
    assert found["generator.python"]["level"] == "ok" and "vLLM 0." in found["generator.python"]["what"]

    def kill(process: subprocess.Popen[str], folder: Path) -> None:
        policy = json.loads((folder / "attempts/1/workers/policy-rank0.json").read_text())["pid"]
        os.kill(policy, signal.SIGKILL)

    result = interrupt(config, cwd=place, when=reached(3), do=kill)
    assert result.code == 1 and "error: policy-rank0 was killed by signal 9" in result.stderr
    run(config, "--resume", cwd=place)
    alone = run(PPO | {"name": "alone"}, cwd=place)
    drawn = folder_of(config, place)
    same_rollouts(drawn, alone, ROLLOUTS)
    compared = [line["sampling/equal_tokens"] for line in metrics(drawn) if "sampling/equal_tokens" in line]
    assert compared and set(compared) == {1.0}


def test_in_bfloat16_the_two_differ_by_rounding_alone(place: Path, python: Path) -> None:
    engine = {"engine": "vllm", "python": str(python), "kv_cache_gib": 1}
    drawn = run(PPO | {"name": "drawn", "mixed_precision": "bf16", "generator": engine}, cwd=place)
    name = "sampling/sampling_logp_difference/mean"
    differences = [line[name] for line in metrics(drawn) if name in line]
    assert len(differences) == ROLLOUTS and min(differences) > 1e-5 and max(differences) < 5e-2
