"""What a run needs of an extra that is not installed is refused by the extra's name; on another machine it may be."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import ScaleupError
from scaleup.plan.extras import DataPlaneMissing, check_data_plane, extra_problems
from scaleup.plan.kernels import FLASH, attention_problems, kernel_problems
from scaleup.plan.machine import Machine
from tests.cli import differing
from tests.unit.plan.conftest import RAW

HERE = Machine(num_cores=8, num_gpus=0)
CASES = {
    "parallel.strategy": ({"parallel.strategy": "zero3", "parallel.num_processes": 2}, "deepspeed", "deepspeed"),
    "quantization": ({"quantization": "8bit"}, "bitsandbytes", "quantization"),
    "quantize.method": (
        {"stage": "quantize", "quantize": {"method": "int8_dynamic"}, "train": None},
        "torchao",
        "quantization",
    ),
    "train.optimizer": ({"train.optimizer": "adamw_8bit"}, "bitsandbytes", "quantization"),
    "evaluation.tasks": ({"evaluation": {"tasks": ["mmlu"]}}, "lm_eval", "eval"),
}


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str) -> ModuleSpec | None:
        return None if name in names else found(name)

    monkeypatch.setattr("scaleup.plan.extras.importlib.util.find_spec", find_spec)


@pytest.mark.parametrize("key", CASES)
def test_refused_by_name(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, module, extra = CASES[key]
    config = load_mapping({name: value for name, value in differing(RAW, changes).items() if value is not None}).config
    assert config is not None
    assert list(extra_problems(config, HERE)) == []
    hide(monkeypatch, module)
    (problem,) = extra_problems(config, HERE)
    assert problem.where == key
    assert problem.what.endswith(f"needs {module}, not installed here")
    assert problem.remedy == f"pip install 'scaleup[{extra}]'"
    assert list(extra_problems(config, Machine(num_cores=8, num_gpus=0, is_described=True))) == []


@pytest.mark.parametrize(
    ("settings", "module", "where"),
    [
        ({"quantization": "4bit"}, "bitsandbytes", "reward.quantization"),
        ({"parallel": {"strategy": "zero3"}}, "deepspeed", "reward.parallel.strategy"),
    ],
)
def test_a_reward_group_has_its_own(
    settings: dict[str, Any], module: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = {"model": {"path": "builtin:tiny-bert-classifier"}, **settings}
    raw = {**RAW, "stage": "ppo", "ppo": {"num_rollouts": 1}, "reward": reward, "train": {}}
    config = load_mapping(raw).config
    assert config is not None
    hide(monkeypatch, module)
    assert [problem.where for problem in extra_problems(config, HERE)] == [where]


def test_the_reward_that_reads_mathematics_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = {"placement": "function", "function": "builtin:math"}
    config = load_mapping({**RAW, "stage": "ppo", "ppo": {"num_rollouts": 1}, "reward": reward, "train": {}}).config
    assert config is not None
    hide(monkeypatch, "math_verify")
    [problem] = extra_problems(config, HERE)
    assert (problem.where, problem.remedy) == ("reward.function", "pip install 'scaleup[math]'")


def test_a_quantized_folder_needs_what_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "torchao"}}')
    config = load_mapping({**RAW, "model": {"path": str(tmp_path)}}).config
    assert config is not None
    assert list(extra_problems(config, HERE)) == []
    hide(monkeypatch, "torchao")
    (problem,) = extra_problems(config, HERE)
    assert problem.where == "model.path" and problem.what.endswith("was quantized with torchao, not installed here")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    check_data_plane()
    hide(monkeypatch, "torch", "peft")
    with pytest.raises(DataPlaneMissing, match=r"torch, peft, not installed here -> pip install 'scaleup\[train\]'"):
        check_data_plane()
    assert issubclass(DataPlaneMissing, ScaleupError)


@pytest.mark.parametrize(("name", "module"), [(name, module) for name, (module, _) in FLASH.items()])
def test_flash_attention_is_a_package_of_its_own(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = differing(RAW, {"model.attn_implementation": name, "mixed_precision": "bf16", "parallel.device": "cuda"})
    config = load_mapping(raw).config
    assert config is not None
    hide(monkeypatch, module)
    on_gpu = Machine(num_cores=8, num_gpus=1)
    [problem] = attention_problems(config, on_gpu, {"model": config.model})
    assert (problem.where, problem.what) == (
        "model.attn_implementation",
        f"{name} needs {module}, not installed here",
    )
    assert list(attention_problems(config, replace(on_gpu, is_described=True), {"model": config.model})) == []


def test_liger_and_compiled_layers_need_what_makes_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = Machine(num_cores=8, num_gpus=1)
    raw = differing(RAW, {"parallel": {"num_processes": 1, "strategy": "single"}})
    liger, compiled = (load_mapping({**raw, key: True}).config for key in ("use_liger_kernel", "torch_compile"))
    assert isinstance(liger, SFTConfig) and isinstance(compiled, SFTConfig)
    hide(monkeypatch, "liger_kernel", "triton")
    monkeypatch.setenv("CXX", "no-such-compiler")
    [problem] = kernel_problems(liger, on_gpu)
    assert (problem.what, problem.remedy) == (
        "needs liger_kernel, not installed here",
        "pip install 'scaleup[liger]'",
    )
    assert [each.what for each in kernel_problems(compiled, on_gpu)] == ["needs triton, not installed here"]
    assert [each.what for each in kernel_problems(compiled, HERE)] == [
        "needs a C++ compiler, and there is no no-such-compiler"
    ]
    described = replace(on_gpu, is_described=True)
    assert [*kernel_problems(liger, described), *kernel_problems(compiled, described)] == []
