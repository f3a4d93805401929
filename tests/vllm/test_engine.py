"""A real vLLM draws what the policy itself would, whatever the model shares and is trained of it; what is stale ends
the run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import scaleup
from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.errors import ScaleupError
from scaleup.rl import weights as weights_module
from tests.engine_runs import SECRET, Start, trained

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def vllm(python: Path, tmp_path: Path) -> Iterator[Callable[..., Start]]:
    """Starts vLLM as an agent does, and sees to its end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(port: int, rank: int | None, count: int) -> None:
        run = tmp_path / "run"
        (run / "launch" / "path").mkdir(parents=True)
        (run / "launch" / "path" / "scaleup").symlink_to(Path(scaleup.__file__).parent)
        BridgeFile("127.0.0.1", port, SECRET).save(run / "bridge-generator.json")
        settings = {
            "dtype": "float32",
            "max_model_len": 128,
            "max_num_seqs": 8,
            "kv_cache_gib": 1,
            "gpu_memory_utilization": 0.5,
            "max_lora_rank": rank,
            "tensor_parallel_size": count,
            "device": "cpu",
            "bridge": str(run / "bridge-generator.json"),
        }
        (run / "launch" / "generator.json").write_text(json.dumps(settings))
        environment = os.environ | {"PYTHONPATH": str(run / "launch" / "path"), "PYTHONSAFEPATH": "1"}
        command = [str(python), "-m", "scaleup.generator.engine", str(run), "generator"]
        with (run / "engine.log").open("wb") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))

    yield lambda rank=None, count=1: lambda port: start(port, rank, count)
    for process in processes:
        try:
            process.wait(20)
        finally:
            process.kill()
            print((tmp_path / "run" / "engine.log").read_text()[-6000:])


@pytest.mark.parametrize(("name", "adapter"), [("tiny-llama", False), ("tiny-qwen2", False), ("tiny-llama", True)])
def test_a_run_by_vllm_is_the_run_without_it(
    vllm: Callable[..., Start], tmp_path: Path, name: str, adapter: bool
) -> None:
    """In float32: with a head of its own, with one that is the embeddings', and of an adapter, which goes alone."""
    alone, plain = trained(tmp_path / "alone", name, None, adapter)
    drawn, lines = trained(tmp_path / "drawn", name, vllm(8 if adapter else None), adapter)
    rollouts = [line for line in lines if "sampling/equal_tokens" in line]
    assert len(rollouts) == 3
    for line in rollouts:
        assert line["sampling/equal_tokens"] == 1
        assert line["sampling/sampling_logp_difference/max"] < 1e-4
    assert max(float((alone[part] - drawn[part]).abs().max()) for part in alone) < 1e-5
    scores = [[line["objective/scores"] for line in each if "objective/scores" in line] for each in (plain, lines)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_matrices_cut_over_two_processes_draw_the_same(vllm: Callable[..., Start], tmp_path: Path) -> None:
    _, plain = trained(tmp_path / "alone")
    _, lines = trained(tmp_path / "drawn", "tiny-llama", vllm(None, 2))
    scores = [[line["objective/scores"] for line in each if "objective/scores" in line] for each in (plain, lines)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_head_that_vllm_leaves_stale_ends_the_run(
    vllm: Callable[..., Start], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a head of its own in the folder, vLLM's build for CPUs keeps the one that it packed when it started."""

    def as_it_is(base: Any, folder: Path, trained: Any) -> None:
        from scaleup.artifacts.files import folder_aside
        from scaleup.models.saved import own_weights, save_model

        with folder_aside(folder) as aside:
            save_model(base, aside, {**own_weights(base), **trained}, "5GB")

    monkeypatch.setattr(weights_module, "_write_model", as_it_is)
    with pytest.raises(ScaleupError, match=r"generator: draws by other weights than the policy's"):
        trained(tmp_path / "stale", "tiny-qwen2", vllm())
