"""Pipelines whose runs are folders made by hand: finished, begun, or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import write_json
from scaleup.config.load import dump
from scaleup.plan.lineage import lineage_of
from scaleup.plan.resume import rows_of
from scaleup.studies.pipeline import Pipeline, PipelineRun, read_pipeline

SFT: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}"},
    "train": {"max_steps": 6},
}
EVALUATE: dict[str, Any] = {
    "stage": "evaluate",
    "model": {"path": "${child}"},
    "data": {"test": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}"},
}
RUNS: dict[str, Any] = {
    "evaluation": {"config": EVALUATE},
    "base": {"config": SFT},
    "child": {"config": SFT, "overrides": {"model.path": "${base}"}},
    "other": {"config": SFT},
}
"""Is written in another order than it runs in."""


def write_rows(folder: Path, count: int = 3) -> None:
    rows = [{"prompt": "a" * (1 + number), "completion": "b"} for number in range(count)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pipeline_of(runs: Mapping[str, Any] = RUNS, *overrides: str, **more: Any) -> Pipeline:
    raw = {"pipeline": "p", "runs": json.loads(json.dumps(dict(runs))), **more}
    return read_pipeline(Path("pipeline.yaml"), raw, overrides)


def begin(run: PipelineRun) -> None:
    """Leave what a run leaves that was killed."""
    folder, config = run.folder, run.config
    data, _ = rows_of(folder, config, "absent", False, print)
    folder.path.mkdir(parents=True)
    folder.config_file.write_text(dump(config), encoding="utf-8")
    data.save(folder.data_file)
    write_json(folder.lineage_file, lineage_of(config, data).model_dump(mode="json"))


def finish(run: PipelineRun, **metrics: float) -> None:
    """Let a run end that was begun."""
    if run.config.stage == "sft":
        run.folder.model.mkdir(exist_ok=True)
        (run.folder.model / "config.json").write_text("{}")
    run.folder.finish(run.config.stage, run.config.name, metrics, 6)


def made(*names: str, runs: Mapping[str, Any] = RUNS) -> Pipeline:
    """A pipeline of which these runs, or all, have finished. What a config says of a folder that is there is read
    again for each."""
    for name in names or pipeline_of(runs).runs:
        begin(pipeline_of(runs).runs[name])
        finish(pipeline_of(runs).runs[name])
    return pipeline_of(runs)
