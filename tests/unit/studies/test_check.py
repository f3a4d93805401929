"""A pipeline is checked through what each of its runs will make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.plan.model_path import adapter_folder
from scaleup.studies import check
from scaleup.studies.pipeline import Pipeline
from tests.unit.studies.folders import pipeline_of

DATA = {"train": "rows.jsonl", "max_length": 32}
TEXT = {**DATA, "prompt": "{text}", "completion": "{label}"}
TRAIN = {"max_steps": 2, "per_device_train_batch_size": 2}
SFT: dict[str, Any] = {"stage": "sft", "data": TEXT, "train": TRAIN}
LORA = {"type": "lora", "r": 2}
GENERATE = {"stage": "generate", "generation": {"prompts": ["a"], "max_new_tokens": 4}}
CLASSES = {**DATA, "text": "{text}", "label": "label"}


def on(model: str, config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"config": {**config, "model": {"path": model}, **changes}}


WHOLE = {
    "reward": on("builtin:tiny-bert", {"stage": "reward", "data": {**DATA, "chosen": "{good}", "rejected": "{bad}"}}),
    "adapter": on("builtin:tiny-llama", SFT, adapter=LORA),
    "ppo": on(
        "${adapter}",
        {"stage": "ppo", "data": {**DATA, "prompt": "{text}"}},
        ppo={"num_rollouts": 2, "rollout_batch_size": 2, "max_new_tokens": 4},
        reward={"model": {"path": "${reward}"}},
    ),
    "further": on("builtin:tiny-llama", SFT, adapter={"type": "lora", "path": "${adapter}"}),
    "tokens": on("builtin:tiny-llama", SFT),
    "classes": on("builtin:tiny-bert", {"stage": "classify", "data": CLASSES, "train": TRAIN}),
    "taught": on(
        "builtin:tiny-bert",
        {"stage": "distill", "data": CLASSES, "train": TRAIN, "teacher": {"path": "${classes}"}},
    ),
    "measured": on("${taught}", {"stage": "evaluate", "data": {**CLASSES, "train": None, "test": "rows.jsonl"}}),
    "shallow": on(
        "builtin:tiny-llama",
        {"stage": "distill", "data": TEXT, "train": TRAIN, "teacher": {"path": "${tokens}"}},
        distill={"student_layers": [0]},
    ),
    "answers": on("${shallow}", GENERATE),
    "pruned": on(
        "${shallow}", {"stage": "prune", "data": TEXT, "prune": {"intermediate_size": 8, "calibration_rows": 2}}
    ),
    "recovered": on("${pruned}", SFT),
    "learned": on("builtin:tiny-llama", SFT, data={**TEXT, "train": "${answers}/generations.jsonl"}),
}
WHOLE["reward"]["config"]["train"] = TRAIN
WHOLE["tokens"]["config"]["model"]["new_tokens"] = ["<a>"]
WHOLE["shallow"]["config"]["model"]["new_tokens"] = ["<a>"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"text": "aa", "label": label, "good": "a", "bad": "b"} for label in ("x", "y")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(pipeline: Pipeline) -> list[str]:
    return check.check(pipeline, list(pipeline.runs))


def test_what_follows_from_a_config_is_seen_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins of what is trained are those of what training makes; all else is said to be unseen."""
    seen: dict[str, Any] = {}
    write = check.write_stand_in

    def kept(promise: check.Promise) -> None:
        write(promise)
        seen[promise.folder.parent.name] = promise, adapter_folder(str(promise.folder)) is not None

    monkeypatch.setattr(check, "write_stand_in", kept)
    assert checked(pipeline_of(WHOLE)) == [
        "recovered: what pruned will make is not known: checked when it is there",
        "learned: what answers will make is not known: checked when it is there",
    ]
    facts = {name: promise.facts for name, (promise, _) in seen.items()}
    assert {name for name, (_, is_adapter) in seen.items() if is_adapter} == {"adapter", "further", "ppo"}
    assert facts["taught"].classes == facts["classes"].classes == ("x", "y")
    assert facts["shallow"].num_layers == 1 < facts["tokens"].num_layers
    assert facts["tokens"].tokenizer_size == facts["adapter"].tokenizer_size + 1
    assert not any(RunFolder(run.folder.path).path.exists() for run in pipeline_of(WHOLE).runs.values())


def test_what_does_not_fit_what_will_be_made_is_refused(place: Path) -> None:
    """Also where what another of its inputs will be is not known, whose name begins alike."""
    runs = {name: WHOLE[name] for name in ("adapter", "tokens", "classes")}
    runs["cut"] = on("${adapter}", {"stage": "prune", "data": TEXT, "prune": {"layers": 1, "calibration_rows": 2}})
    runs["tok"] = on("${adapter}", {"stage": "export"})
    runs["read"] = on("${tok}", SFT, adapter={"type": "lora", "path": "${tokens}"})
    runs["other"] = on("builtin:tiny-llama", SFT, adapter={"type": "lora", "path": "${tokens}"})
    runs["student"] = on(
        "builtin:tiny-llama",
        {"stage": "distill", "data": TEXT, "train": TRAIN, "teacher": {"path": "${tokens}"}},
    )
    runs["writer"] = on("${classes}", GENERATE)
    with pytest.raises(ScaleupError) as refused:
        checked(pipeline_of(runs))
    assert [str(problem).partition(" -> ")[0] for problem in refused.value.problems] == [
        f"runs.cut: model.path: {place}/runs/p-adapter is an adapter, and what is cut is a whole model",
        f"runs.read: adapter.path: {place}/runs/p-tokens holds no adapter_config.json",
        f"runs.other: adapter.path: {place}/runs/p-tokens holds no adapter_config.json",
        "runs.student: teacher.path: its tokenizer has 260 tokens, and model's 259",
        "runs.writer: model.path: is a sequence classifier (BertForSequenceClassification): it scores texts and "
        "writes none",
    ]


def test_more_runs_side_by_side_than_devices_are_refused() -> None:
    with pytest.raises(ScaleupError, match=r"^num_parallel: is 4096, and there are \d+ cores here"):
        checked(pipeline_of({"tokens": WHOLE["tokens"]}, num_parallel=4096))
