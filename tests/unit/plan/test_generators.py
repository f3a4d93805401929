"""What is planned for an engine that draws responses: its group, GPUs, cores, memory, and how it is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.errors import ScaleupError
from scaleup.launcher.prepare import write_launch_file
from scaleup.plan.describe import Described
from scaleup.plan.generator_problems import known_models
from scaleup.plan.groups import resized
from scaleup.plan.machine import Machine
from scaleup.plan.resolve import resolve
from scaleup.plan.types import Plan
from tests.cli import differing
from tests.stand_in_engine import stand_in_python
from tests.unit.plan.test_groups import POLICY, RAW, SCORER

GIB = 2**30
MakePlan = Callable[..., Plan]


@pytest.fixture
def planned(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    python = stand_in_python(tmp_path / "environment")

    def make(changes: dict[str, Any] | None = None, num_gpus: int = 0, memory: int | None = None) -> Plan:
        def known(models: Any, *_: Any) -> Described:
            return Described({where: SCORER if where == "reward.model" else POLICY for where in models})

        monkeypatch.setattr("scaleup.plan.resolve.describe_models", known)
        engine = {"generator": {"engine": "vllm", "python": str(python)}}
        config = differing(differing(RAW, engine), changes or {})
        return resolve(load_mapping(config), Machine(num_cores=8, num_gpus=num_gpus, memory=memory), resume=True)[1]

    return make


def test_an_engine_comes_after_the_other_groups(planned: MakePlan) -> None:
    plan = planned({"generator.bridge_port": 4000, "generator.max_restarts": 7})
    policy, reward, engine = plan.groups
    assert (policy.generator, reward.generator) == (None, None)
    assert (engine.name, engine.serves, engine.max_restarts) == ("generator", True, 7)
    assert engine.generator is not None and engine.generator.max_model_len == 64 + 48
    assert (engine.generator.dtype, engine.generator.max_lora_rank) == ("float32", None)
    assert engine.threads_per_process == 8, "the others wait while it draws"
    assert policy.threads_per_process == 4, "beside the reward group alone"
    assert (plan.bridges["generator"].address, plan.bridges["generator"].port) == ("127.0.0.1", 4000)


def test_it_computes_in_the_policys_precision_and_takes_its_adapter(planned: MakePlan) -> None:
    plan = planned({"mixed_precision": "bf16", "adapter": {"type": "lora", "r": 12}})
    engine = plan.group("generator").generator
    assert engine is not None and (engine.dtype, engine.max_lora_rank) == ("bfloat16", 16)


def test_it_has_gpus_after_theirs(planned: MakePlan) -> None:
    changes = {"parallel.num_processes": 2, "generator.parallel.num_processes": 2}
    plan = planned(changes, num_gpus=5)
    assert [group.first_device for group in plan.groups] == [0, 2, 3]
    with pytest.raises(ScaleupError, match=r"3 of other groups and 2 of the generator need 5 GPUs, .* has 4"):
        planned(changes, num_gpus=4)
    assert planned(changes | {"generator.parallel.device": "cpu"}, num_gpus=3).group("generator").device == "cpu"


def test_its_memory_is_counted_and_that_of_the_weights_that_are_written(planned: MakePlan) -> None:
    plan = planned({"generator.kv_cache_gib": 3, "generator.parallel.num_processes": 2})
    held, weights = plan.serving_memory["generator"], 4 * POLICY.num_parameters
    assert (held.weights, held.buffers) == (weights // 2, 3 * GIB)
    loading = next(each for each in plan.loading if each.group == "generator")
    assert (loading.rank, loading.node) == (held.total, 2 * held.total + 2 * weights)
    with pytest.raises(ScaleupError, match="loading takes"):
        planned({"generator.kv_cache_gib": 3}, memory=2 * GIB)


def test_it_is_started_with_what_the_plan_says_also_at_another_size(planned: MakePlan, tmp_path: Path) -> None:
    run, group = RunFolder(tmp_path / "run"), planned().group("generator")
    (run.path / "launch").mkdir(parents=True)
    for each, count in ((group, 1), (resized(group, 2), 2)):
        write_launch_file(run, each)
        settings = json.loads(run.engine_file("generator").read_text())
        assert settings["tensor_parallel_size"] == count
        assert settings["bridge"] == str(run.bridge_file("generator")) and "python" not in settings
    assert resized(group, 2).threads_per_process == 4
    assert [file.name for file in run.engine_path.iterdir()] == ["scaleup"], "nothing else of our environment"


def test_what_an_engine_knows_is_read_from_its_source(tmp_path: Path) -> None:
    assert known_models(str(stand_in_python(tmp_path / "environment"))) == {"LlamaForCausalLM", "Qwen2ForCausalLM"}
