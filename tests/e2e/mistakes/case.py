"""One mistake: a good tiny run with something spoilt, and the lines that must be printed for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import yaml

from scaleup.config.load import dump, load
from tests.cli import differing

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
FACTS = ["-m", "scaleup.describe.answer"]

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
    memory: int | None = None
    """The bytes of main memory of the machine, where it is not this one."""
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


def llama(vocab_size: int = 259, **shapes: list[int] | None) -> Prepare:
    """A folder `m` with a Llama of one layer. Some of its weights, by their names with `__` for dots, have other shapes
    in its file, or (None) are not there."""
    wide, square = [16, 8], [8, 8]
    layer = {f"self_attn.{name}_proj": square for name in "qkvo"} | {"mlp.gate_proj": wide, "mlp.up_proj": wide}
    layer |= {"mlp.down_proj": [8, 16], "input_layernorm": [8], "post_attention_layernorm": [8]}
    names: dict[str, list[int] | None] = {
        "lm_head.weight": [vocab_size, 8],
        "model.embed_tokens.weight": [vocab_size, 8],
    }
    names |= {"model.norm.weight": [8], **{f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}}
    names |= {name.replace("__", "."): shape for name, shape in shapes.items()}
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, **sizes}

    def prepare(folder: Path) -> None:
        (folder / "m").mkdir()
        (folder / "m/config.json").write_text(json.dumps(config))
        header, end = {}, 0
        for name, shape in names.items():
            if shape is not None:
                start, end = end, end + 4 * prod(shape)
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        head = json.dumps(header).encode()
        with (folder / "m/model.safetensors").open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.truncate(8 + len(head) + end)  # a hole: it takes no room on the disk

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
WITH_TOKENIZER = {**M, "model.tokenizer": "builtin:tiny-llama"}
