"""Tiny models, configs and a one-process Runtime for tests of the data plane."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState

from scaleup.config.data import DataConfig
from scaleup.config.schema import ModelConfig
from scaleup.data.collate import Collator
from scaleup.data.dataset import collator_for
from scaleup.data.tokenization import Encoder, Tokens
from scaleup.describe.model import model_facts
from scaleup.distributed.runtime import Runtime
from scaleup.models.load import load_model, load_tokenizer, pad_token_id
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import GroupPlan, Plan
from scaleup.records.examples import Example, PromptCompletion

torch.set_num_threads(1)

CACHE = tempfile.TemporaryDirectory(prefix="scaleup-tiny-")
CAUSAL = ("llama", "qwen2", "gpt2")
SEQ2SEQ = ("t5", "bart")

GROUP = GroupPlan(
    name="policy",
    num_processes=1,
    num_nodes=1,
    device="cpu",
    backend="gloo",
    strategy="single",
    why="a test",
    distributed_type="NO",
    engine="none",
    mixed_precision="no",
    threads_per_process=1,
    main_address=None,
    main_port=None,
)

PAIRS = [
    PromptCompletion("Review: a dull film.\nSentiment:", " bad"),
    PromptCompletion("Review: I liked every minute of it!\nSentiment:", " very good indeed"),
    PromptCompletion("?", " yes"),
    PromptCompletion("Translate: où est la gare ?", " where is the station?"),
    PromptCompletion("one two three four five six seven eight nine", " ten"),
]


def model_config(name: str) -> ModelConfig:
    return ModelConfig(path=f"builtin:tiny-{name}")


@cache
def facts(name: str) -> ModelFacts:
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=CACHE.name):
        return model_facts(model_config(name))


def plan(folder: Path, name: str = "llama", **others: Any) -> Plan:
    """Of a run of a tiny model on one process."""
    fields = {"stage": "sft", "name": "reviews", "groups": [GROUP], "model": facts(name), "memory": [], "notes": []}
    return Plan.model_validate({"run_folder": str(folder), **fields, **others})


def tokenizer(name: str, pad_is_eos: bool = False) -> Any:
    loaded = load_tokenizer(model_config(name), facts(name).location)
    if pad_is_eos:
        loaded.pad_token = loaded.eos_token
    return loaded


def model(name: str) -> Any:
    return load_model(model_config(name), facts(name))


def data_config(**keys: Any) -> DataConfig:
    return DataConfig.model_validate({"prompt": "{p}", "completion": "{c}", **keys})


def encode(name: str, examples: Sequence[Example] = PAIRS, **keys: Any) -> list[Tokens]:
    rows = Encoder(tokenizer(name), facts(name).task, data_config(**keys))(examples)
    assert None not in rows
    return rows


def collator(name: str, model: Any, pad_is_eos: bool = False) -> Collator:
    shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    return collator_for(facts(name).task, pad_token_id(tokenizer(name, pad_is_eos)), shift_right)


def single_process(folder: Path) -> Runtime:
    """The Runtime of a run with one process, started anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Runtime.start(GROUP, 60, folder)


def classifier(name: str) -> Any:
    """The same backbone with a new head of one score."""
    asked = model_config(name).model_copy(update={"task": "sequence_classification"})
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=CACHE.name):
        found = model_facts(asked)
    torch.manual_seed(0)
    return load_model(asked, found)
