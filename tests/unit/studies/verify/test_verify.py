"""A config becomes tiny twins and the equalities between them; a wrong weight is seen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from scaleup.config.load import load_mapping, read_mapping
from scaleup.config.stages.base import SupervisedConfig, TrainingConfig
from scaleup.launcher.signals import StopSignals
from scaleup.plan.machine import this_machine
from scaleup.plan.stages import planner_of
from scaleup.plan.twins import NUM_ROWS, NUM_STEPS
from scaleup.reports.verification import Finding, Verification, write_page
from scaleup.studies.verify.equalities import TOLERANCE, Equality, TwinRun
from scaleup.studies.verify.runs import KILLED, RunFailed, RunRefused, TwinRuns, kill_tree
from scaleup.studies.verify.trainings import EXACT
from scaleup.studies.verify.twin import changed, models_of, twin_of, twin_problems
from scaleup.studies.verify.verify import equalities_of, found
from tests.cli import differing
from tests.small_runs import PPO, SFT, write_rows
from tests.unit.artifacts.test_differences import left


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)


def config_of(changes: Mapping[str, Any] | None = None) -> SupervisedConfig:
    loaded = load_mapping(differing(SFT | {"name": "x"}, changes or {}))
    assert loaded.problems == [] and isinstance(loaded.config, SupervisedConfig)
    return loaded.config


def equality(name: str, changes: Mapping[str, Any] | None = None) -> Equality:
    return next(each for each in equalities_of(config_of(changes)) if each.name == name)


ROOT = Path(__file__).parents[4]
LORA = {"adapter": {"type": "lora", "r": 4, "lora_dropout": 0.1}, "quantization": "8bit"}


def test_a_twin_keeps_what_the_config_is_about(tmp_path: Path) -> None:
    changes = {**LORA, "mixed_precision": "bf16", "data.max_length": 4096, "train.global_batch_size": 64}
    config = config_of({**changes, "parallel": {"strategy": "zero2", "num_processes": 8, "num_nodes": 2}})
    twin = twin_of(config, {"model": tmp_path / "model"}, tmp_path, is_on_cpu=True)
    loaded = load_mapping(changed(twin, "reference", {}))
    assert loaded.problems == [] and isinstance(loaded.config, SupervisedConfig)
    made = loaded.config
    assert (made.stage, made.quantization, made.data.prompt) == ("sft", "8bit", "{prompt}")
    assert made.adapter is not None and made.adapter.model_dump() == {
        **config.adapter.model_dump(),  # type: ignore[union-attr]
        "lora_dropout": 0.0,
    }
    assert made.data.train is not None and [source.max_rows for source in made.data.train] == [NUM_ROWS]
    assert (made.data.max_length, made.train.max_steps, made.train.optimizer) == (512, NUM_STEPS, "sgd")
    assert (made.parallel.strategy, made.parallel.num_processes, made.parallel.num_nodes) == ("single", 1, 1)
    assert (made.mixed_precision, made.model.path) == ("no", str(tmp_path / "model"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        LORA,
        {"data.packing": True},
        {"train.tokens_per_device": 256, "train.per_device_train_batch_size": None},
        {"train.group_by_length": True},
        {"adapter": {"type": "adalora"}, "train.optimizer": "sgd", "train.momentum": 0.5},
        {"parallel.strategy": "zero3", "parallel.offload_parameters": True, "train.lr_scheduler_type": "cosine"},
    ],
)
def test_every_run_of_a_twin_is_a_config_of_as_large_steps(changes: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(changes)
    twin, sizes = twin_of(config, {"model": tmp_path / "model"}, tmp_path, is_on_cpu=True), set()
    for each in equalities_of(config):
        for run in (run for end in each.runs for run in end.chain if not each.not_due):
            loaded = load_mapping(changed(twin, run.name, run.changes))
            assert loaded.problems == [] and isinstance(loaded.config, SupervisedConfig), run.name
            train, world = loaded.config.train, loaded.config.parallel.num_processes
            sizes.add(world * (train.gradient_accumulation_steps or 1) * (train.per_device_train_batch_size or 1))
    assert len(sizes) == 1


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "classify", "distill", "ppo", "rl"])
def test_every_stage_that_trains_has_twins(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of the twin of its own tiny config is one that the planner takes."""
    monkeypatch.chdir(ROOT)
    config = load_mapping(read_mapping(Path(f"configs/{stage}/tiny.yaml"))).config
    assert isinstance(config, TrainingConfig)
    models = {where: tmp_path / "models" / where for where in models_of(config)}
    for folder in models.values():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").touch()
    twin = twin_of(config, models, tmp_path, is_on_cpu=True)
    names = [each.name for each in equalities_of(config)]
    assert ("self-checks" in names) == (stage in ("ppo", "rl")) and len(set(names)) == len(names)
    for run in {run.name: run for each in equalities_of(config) for end in each.runs for run in end.chain}.values():
        loaded = load_mapping(changed(twin, run.name, run.changes))
        assert loaded.problems == [] and loaded.config is not None, run.name
        if run.name != "engine":
            assert planner_of(loaded.config).config_problems(loaded.config, this_machine()) == [], run.name


def test_a_twin_on_cpus_leaves_out_what_needs_a_gpu(tmp_path: Path) -> None:
    """Nor are rows held out of it that it learns."""
    changes = {"model.attn_implementation": "flash_attention_2", "use_liger_kernel": True, "data.test": "rows.jsonl"}
    twin = twin_of(config_of(changes), {"model": tmp_path / "model"}, tmp_path, is_on_cpu=True)
    made = load_mapping(changed(twin, "reference", {})).config
    assert made is not None and made.model.attn_implementation is None
    assert not made.model_dump()["use_liger_kernel"]
    assert made.data.validation is None and made.data.test is None


def test_a_service_gets_none_of_a_twins_texts() -> None:
    rewards = {"placement": "http", "url": "http://127.0.0.1:1", "format": "openai", "judge": {"model": "x"}}
    config = load_mapping(PPO | {"name": "x", "reward": rewards}).config
    assert isinstance(config, TrainingConfig)
    made = load_mapping(changed(twin_of(config, {}, Path(), is_on_cpu=True), "x", {}))
    assert made.problems == [] and made.config is not None
    [reward] = made.config.reward_sources
    assert (reward.source.placement, reward.source.function) == ("function", "builtin:length")


def test_a_run_that_ends_by_its_own_checks_is_a_violation() -> None:
    config = load_mapping(PPO | {"name": "x"}).config
    assert isinstance(config, TrainingConfig)
    each = next(each for each in equalities_of(config) if each.name == "self-checks")
    for words, verdict in (("self_checks: a ratio is not 1", "violated"), ("model.path: is gone", "failed")):
        made: dict[str, Path | RunFailed] = {"self-checks": RunFailed(f"run self-checks ended: {words}")}
        assert found(each, TwinRuns({}, Path(), StopSignals(), print, made)).verdict == verdict


def test_a_twin_gives_no_key_that_its_config_does_not(tmp_path: Path) -> None:
    """Rules ask what is given: dpo.simpo_gamma, say, has no meaning for another loss."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    data = {"train": "rows.jsonl", "prompt": "{prompt}", "chosen": "{chosen}", "rejected": "{rejected}"}
    loaded = load_mapping(SFT | {"stage": "dpo", "name": "x", "data": data, "dpo": {"beta": 0.2}})
    assert loaded.problems == [] and isinstance(loaded.config, SupervisedConfig)
    twin = twin_of(loaded.config, {"model": tmp_path / "model"}, tmp_path, is_on_cpu=True)
    assert twin["dpo"] == {"beta": 0.2}
    made = load_mapping(changed(twin, "reference", {})).config
    assert made is not None and made.model_dump()["dpo"] == loaded.config.model_dump()["dpo"]


def test_what_is_not_due_says_why() -> None:
    due = {each.name: each.not_due for each in equalities_of(config_of({"mixed_precision": "bf16"}))}
    assert [name for name, why in due.items() if why] == ["exported"] and "no adapter" in due["exported"]
    assert not equality("exported", {"adapter": {"type": "lora"}}).not_due
    assert "as it was before" in equality("saved", LORA).not_due
    assert equality("bf16").not_due == "the run computes in float32"
    assert "8-bit base" in equality("fsdp2", LORA).not_due
    assert "by their lengths" in equality("micro-batch", {"data.packing": True}).not_due
    assert not equality("processes", {"data.packing": True}).not_due


def test_bounds_are_those_of_the_tests() -> None:
    bounds = {each.name: each.bound for each in equalities_of(config_of())}
    assert (bounds["processes"], bounds["resumed"], bounds["elsewhere"]) == (TOLERANCE, EXACT, TOLERANCE)


@pytest.mark.parametrize("changes", [{"model.path": "adapter"}, {"adapter": {"type": "lora", "path": "adapter"}}])
def test_an_adapter_that_is_trained_further_has_no_twin(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    problem = next(twin_problems(config_of(changes)))
    assert problem.where == next(iter(changes)) + (".path" if "adapter" in changes else "")


def finding(one: Path | RunFailed, other: Path | RunFailed, name: str = "processes") -> Finding:
    """What becomes of an equality between two runs that are there."""
    each = equality(name)
    made = dict(zip((run.name for run in each.runs), (one, other), strict=True))
    return found(each, TwinRuns({}, Path(), StopSignals(), print, made))


def test_a_wrong_weight_is_a_violation(tmp_path: Path) -> None:
    one = left(tmp_path / "one", [2.0, 1.0], a=[0.25, 0.5])
    near = left(tmp_path / "near", [2.0, 1.0 + 1e-6], a=[0.25, 0.5])
    wrong = left(tmp_path / "wrong", [2.0, 1.0], a=[0.25, 0.5 + 2e-5])
    assert finding(one, near).verdict == "holds"
    assert finding(one, near, "resumed").verdict == "violated", "bit by bit"
    assert finding(one, one, "resumed").verdict == "holds"
    seen = finding(one, wrong)
    assert seen.verdict == "violated" and seen.deviation == pytest.approx(2e-5, rel=0.01)
    assert not verification(seen).is_well and verification(finding(one, near)).is_well


def test_runs_of_other_steps_are_a_violation(tmp_path: Path) -> None:
    one, other = left(tmp_path / "one", [2.0, 1.0], a=[1]), left(tmp_path / "other", [2.0], a=[1])
    seen = finding(one, other)
    assert (seen.verdict, seen.deviation) == ("violated", None) and "logged the steps 1 to 2" in seen.why


def test_a_run_that_failed_is_no_equality(tmp_path: Path) -> None:
    seen = finding(left(tmp_path / "one", [1.0], a=[1]), RunFailed("run ddp ended with exit code 1"))
    assert (seen.verdict, seen.why) == ("failed", "run ddp ended with exit code 1")
    assert not verification(seen).is_well


def test_a_twin_that_never_moves_is_a_violation(tmp_path: Path) -> None:
    for norm, verdict in ((1e-4, "violated"), (0.5, "holds")):
        folder = left(tmp_path / verdict, [1.0], a=[1])
        (folder / "metrics.jsonl").write_text(
            json.dumps({"step": 1, "loss": 1.0, "grad_norm": norm, "learning_rate": 0.1}) + "\n"
        )
        each = equality("learns")
        assert found(each, TwinRuns({}, Path(), StopSignals(), print, {"reference": folder})).verdict == verdict


def verification(*findings: Finding, is_whole: bool = True) -> Verification:
    return Verification("x.yaml", "sft", "twins", findings, 61.0, is_whole)


def test_what_was_not_measured_is_not_well(tmp_path: Path) -> None:
    folder = left(tmp_path / "one", [1.0], a=[1])
    assert not verification(finding(folder, folder), is_whole=False).is_well


def test_a_page_says_what_was_violated(tmp_path: Path) -> None:
    one, other = left(tmp_path / "one", [2.0], a=[1]), left(tmp_path / "other", [2.5], a=[1])
    told = verification(finding(one, other))
    write_page(told, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "violated" in page and "5.0e-01" in page and "not all that is due was seen to hold" in page
    assert told.counts == "1 violated; 1 min 1 s"
    assert json.loads(json.dumps(told.plain()))["findings"][0]["deviation"] == 0.5


def test_a_run_that_is_refused_is_not_due(tmp_path: Path) -> None:
    one = left(tmp_path / "one", [1.0], a=[1])
    seen = finding(one, RunRefused("it is refused: parallel.strategy: is not for this model"))
    assert (seen.verdict, seen.deviation) == ("not due", None) and "is not for this model" in seen.why
    assert verification(seen).is_well


@pytest.mark.slow
@pytest.mark.parametrize("name", ["other", "reference"])
def test_what_is_refused_is_told_from_what_fails(name: str, tmp_path: Path) -> None:
    """A real run: the plan refuses it for its first mistake. The refusal of the reference is that of the twin."""
    twin = SFT | {"runs_dir": str(tmp_path), "train": SFT["train"] | {"learning_rate": -1}}
    runs = TwinRuns(twin, tmp_path, StopSignals(), print)
    with pytest.raises(RunFailed, match=r"train\.learning_rate") as caught:
        runs.folder(TwinRun(name))
    assert isinstance(caught.value, RunRefused) == (name == "other")


CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); time.sleep(60)"


@pytest.mark.slow
def test_nothing_is_left_of_a_tree_that_is_killed() -> None:
    """Three generations, the last of which has left its parent's session."""
    last = "import os, time; os.setsid(); time.sleep(60)"
    command = [sys.executable, "-c", CHILD.format(CHILD.format(last))]
    process = subprocess.Popen(command)
    tree: list[psutil.Process] = []
    try:
        while len(tree) < 2:
            time.sleep(0.01)
            tree = psutil.Process(process.pid).children(recursive=True)
        kill_tree(process)
        assert process.returncode == KILLED
        assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in tree)
    finally:
        for each in tree:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()
