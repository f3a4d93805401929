"""A finished run -> the config that evaluates or exports it, or generates from it: same data, same formats, a folder
inside it."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import yaml

from scaleup.artifacts.run_folder import RunFolder, finished_run
from scaleup.config.load import Loaded, load_leniently, load_mapping
from scaleup.config.schema import DataConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.examples import format_problems


def evaluation_config(target: Path, overrides: Sequence[str]) -> Loaded:
    """Of a finished run: its model beside the one it started from, or its teacher. Or of a config file with stage
    evaluate."""
    return _derived(target, "evaluate", "evaluations", overrides)


def generation_config(target: Path, overrides: Sequence[str], prompts: Sequence[str] = ()) -> Loaded:
    """Of a finished run, or of a config file with stage generate; `prompts` take the place of data.test."""
    given = [f"generation.prompts={yaml.safe_dump(list(prompts), default_flow_style=True, width=inf)}"]
    return _derived(target, "generate", "generations", [*overrides, *(given if prompts else [])])


def export_config(target: Path, overrides: Sequence[str]) -> Loaded:
    """Of a finished run. Or of a config file with stage export."""
    return _derived(target, "export", "exports", overrides)


def _derived(target: Path, stage: str, folder: str, overrides: Sequence[str]) -> Loaded:
    if target.is_file():
        loaded = load_leniently(target, overrides)
        if loaded.config is not None and loaded.config.stage != stage:
            what = f"has stage {loaded.config.stage}, not {stage}"
            remedy = f"name a finished run's folder, or a config with stage: {stage}"
            raise ScaleupError([Problem(str(target), what, remedy), *loaded.problems])
        return loaded
    run = finished_run(target)
    known = run.config.model_dump(mode="json")
    if run.config.stage == "reward" and stage == "generate":
        what = "is the run of a reward model, which scores texts and writes none"
        raise ScaleupError.of(str(target), what, "measure it: scaleup evaluate")
    raw = {
        "stage": stage,
        "name": _next_number(run, folder),
        "runs_dir": str(run.path / folder),
        "model": {**known["model"], "path": str(run.path), "revision": None},
        "data": {**known["data"], "streaming": False, "validation_fraction": None},
        **(_export_keys(known) if stage == "export" else _inference_keys(known)),
    }
    if stage == "evaluate" and run.config.stage not in ("evaluate", "reward"):
        raw["baseline"] = known.get("teacher") or known["model"]
    return load_mapping(raw, overrides)


def _inference_keys(known: dict[str, Any]) -> dict[str, Any]:
    generation = known.get("generation", {})
    if generation is None:
        generation = {"max_new_tokens": known["ppo"]["max_new_tokens"]}
    return {
        "generation": generation,
        "evaluation": known.get("evaluation", {}),
        "mixed_precision": known["mixed_precision"],
        "quantization": known.get("quantization"),
        "parallel": known["parallel"],
    }


def _export_keys(known: dict[str, Any]) -> dict[str, Any]:
    """In one process, checked on held-out rows of the run, or else on those it was trained on; of rows that are prompts
    or preferences nothing is checked."""
    data = {**known["data"], "train": None, "validation": None, "test": None, "validation_fraction": None}
    split = next((split for split in ("test", "validation", "train") if known["data"][split]), "test")
    rows = [{**source, "split": source["split"] or split} for source in known["data"][split] or []]
    if known["stage"] == "reward" or format_problems(DataConfig.model_validate(known["data"]), [split]):
        rows = []
    return {
        "data": {**data, "test": rows or None},
        "export": {"trained_in": known.get("quantization")},
        "parallel": {"device": known["parallel"]["device"]},
    }


def _next_number(run: RunFolder, folder: str) -> str:
    names = [place.name for place in (run.path / folder).glob("*")]
    return str(max((int(name) for name in names if name.isdigit()), default=0) + 1)
