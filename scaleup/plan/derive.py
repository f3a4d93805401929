"""A finished run goes in; the config that evaluates or exports it, or generates from it, comes out: same data, same
formats, a folder inside it."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import yaml

from scaleup.artifacts.run_folder import RunFolder, finished_run
from scaleup.config.data import DataConfig, SourceConfig
from scaleup.config.load import NO_TEXT, UTF_8, Loaded, is_text, load_leniently, load_mapping
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.stages import planner_of
from scaleup.records.arrow_rows import splits_in
from scaleup.records.examples import format_problems
from scaleup.records.format_rules import FORMAT_KEYS, holds_preferences, is_unpaired, row_format, with_formats
from scaleup.records.formats import local_path

OF_TRAINING = ("revision", "attn_implementation")
"""Names keys of a run's model that do not hold for what it made: another machine measures it with what it has."""
OF_ONE_STAGE = ("supervised", "retain", "regularization")
"""Names rows that no stage reads but the one that trained."""


def evaluation_config(target: Path, overrides: Sequence[str]) -> Loaded:
    """Returns the evaluation of a finished run (its model beside the one it started from, or its teacher), or the
    config in a file with stage evaluate."""
    return _derived(target, "evaluate", "evaluations", overrides)


def generation_config(target: Path, overrides: Sequence[str], prompts: Sequence[str] = ()) -> Loaded:
    """Returns the generation of a finished run, or the config in a file with stage generate; `prompts` replace
    data.test. Raises ScaleupError for those that are no text."""
    if strangers := [prompt for prompt in prompts if not is_text(prompt)]:
        raise ScaleupError([Problem("--prompt", f"{prompt!r} {NO_TEXT}", UTF_8) for prompt in strangers])
    given = [f"generation.prompts={yaml.safe_dump(list(prompts), default_flow_style=True, width=inf)}"]
    return _derived(target, "generate", "generations", [*overrides, *(given if prompts else [])])


CHAT_TOKENS = 256
"""Bounds an answer of a model that no run says it of."""


def chat_config(target: str, overrides: Sequence[str]) -> Loaded:
    """Returns the generation of one process by which a finished run, or a model by its path or name, answers in a
    conversation. Raises ScaleupError for settings of several answers or of rows."""
    alone = ["parallel.num_processes=1", "parallel.num_nodes=1", "parallel.strategy=single"]
    if (Path(target) / "config.yaml").is_file():
        loaded = generation_config(Path(target), [*alone, "data.few_shot=null", *overrides], ["-"])
    else:
        generation = {"prompts": ["-"], "max_new_tokens": CHAT_TOKENS}
        raw = {"stage": "generate", "name": "chat", "model": {"path": target}, "generation": generation}
        loaded = load_mapping(raw, [*alone, *overrides])
    config: Any = loaded.config
    if config is None:
        return loaded
    problems = []
    for key in ("num_beams", "num_return_sequences"):
        if getattr(config.generation, key) > 1:
            what = "is of whole answers, and a chat shows one as it is written"
            problems.append(Problem(f"generation.{key}", what, "leave it out"))
    if config.data.few_shot is not None:
        problems.append(Problem("data.few_shot", "is of rows, and a chat has none", "leave it out"))
    if config.adapters is not None:
        problems.append(Problem("adapters", "are put side by side, and a chat is with one model", "name one's run"))
    if problems:
        raise ScaleupError([*loaded.problems, *problems])
    return loaded


def export_config(target: Path, overrides: Sequence[str]) -> Loaded:
    """Returns the export of a finished run, or the config in a file with stage export."""
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
    config, planner = run.config, planner_of(run.config)
    if not any(override.partition("=")[0].removeprefix("data.") in FORMAT_KEYS for override in overrides):
        config = config.model_copy(update={"data": with_formats(config.data)})
    known = config.model_dump(mode="json")
    if stage == "generate" and not planner.writes_text:
        what = "is the run of a reward model or a classifier, which scores texts and writes none"
        raise ScaleupError.of(str(target), what, "measure it: scaleup evaluate")
    raw = {
        "stage": stage,
        "name": _next_number(run, folder),
        "runs_dir": str(run.path / folder),
        "model": {**known["model"], "path": str(run.path), **dict.fromkeys(OF_TRAINING), **_own_tokens(config)},
        "data": {**known["data"], **dict.fromkeys(OF_ONE_STAGE), "streaming": False, "validation_fraction": None},
        **(_export_keys(config) if stage == "export" else _inference_keys(config)),
    }
    if run.config.data.chat_template is not None:
        raw["data"]["chat_template"] = _saved_template(run)
    if stage == "evaluate" and (before := planner.before(run.config)) is not None:
        raw |= {
            "baseline": before.model_dump(mode="json", exclude={"new_tokens", "attn_implementation"}),
            "baseline_chat_template": planner.before_reads,
        }
    return load_mapping(raw, overrides)


def _own_tokens(config: RunConfig) -> dict[str, Any]:
    """Returns the keys of the model of a finished run that has learned new tokens: its own tokenizer has them."""
    return {"tokenizer": None, "new_tokens": []} if config.model.new_tokens else {}


def _saved_template(run: RunFolder) -> str | None:
    """Returns the chat template that a run saved with its model: the one that its config names may be another one by
    now, or gone. Its baseline reads through it too, but for a teacher."""
    saved = run.model / "chat_template.jinja"
    return str(saved) if saved.is_file() else None


def _inference_keys(config: RunConfig) -> dict[str, Any]:
    known = config.model_dump(mode="json")
    return {
        "generation": planner_of(config).generation(config).model_dump(mode="json"),
        "evaluation": known.get("evaluation", {}),
        "mixed_precision": known["mixed_precision"],
        "quantization": known.get("quantization"),
        "parallel": known["parallel"],
    }


def _export_keys(config: RunConfig) -> dict[str, Any]:
    """Returns the keys of an export in one process, checked on held-out rows of the run, or else on those it was
    trained on; of rows that are prompts or preferences nothing is checked."""
    known = config.model_dump(mode="json")
    unread = ("train", "validation", "test", *OF_ONE_STAGE, "validation_fraction")
    data = {**known["data"], **dict.fromkeys(unread)}
    split = next((split for split in ("test", "validation", "train") if known["data"][split]), "test")
    rows = [
        source.model_dump(mode="json") | {"split": source.split or own_split(config.data, source, split)}
        for source in getattr(config.data, split) or []
    ]
    forms = [row_format(config.data, source) for source in getattr(config.data, split) or []]
    are_preferences = any(holds_preferences(form) or is_unpaired(form) for form in forms)
    if not planner_of(config).writes_text or are_preferences or format_problems(config.data, [split]):
        rows = []
    return {
        "data": {**data, "test": rows or None},
        "export": {"trained_in": known.get("quantization")},
        "parallel": {"device": known["parallel"]["device"]},
    }


def own_split(data: DataConfig, source: SourceConfig, split: str) -> str | None:
    """Returns the split that a source is read from though it is no longer named under it; None where files have
    none."""
    path = local_path(data, source, split)
    return split if path is None or (path.name == split and splits_in(path.parent)) else None


def _next_number(run: RunFolder, folder: str) -> str:
    names = [place.name for place in (run.path / folder).glob("*")]
    return str(max((int(name) for name in names if name.isdigit()), default=0) + 1)
