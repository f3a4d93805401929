"""What a finished run leaves behind."""

import json

import pytest
import yaml
from PIL import Image

from scaleup.artifacts.files import read_json
from scaleup.config.schema import ModelConfig
from scaleup.config.stages import SFTConfig
from scaleup.evaluation.report import (
    finish,
    finish_training,
    model_card,
    plot_losses,
    read_metrics,
    result_writer,
    summary,
)
from scaleup.models.classifier import plain_padding
from scaleup.models.facts import model_facts
from scaleup.models.load import load_model, load_tokenizer
from scaleup.plan.types import Plan
from scaleup.train.state import TrainState
from tests.classifier import sharp_classifier_like
from tests.unit.data import tiny

LINES = [
    {"step": 1, "loss": 3.0, "grad_norm": 1.0},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_loss": 2.5},
    {"step": 3, "loss": 1.0},
    {"step": 3, "eval_loss": 2.75},
]
STATE = TrainState(step=3, num_tokens=42, best_loss=2.5, best_step=2)
METRICS = {
    "train_loss": 1.0,
    "eval_loss": 2.75,
    "best_eval_loss": 2.5,
    "best_step": 2,
    "num_tokens": 42,
    "rows_left_out": 1,
}
CONFIG = SFTConfig.model_validate(
    {
        "stage": "sft",
        "name": "reviews",
        "model": {"path": "builtin:tiny-llama"},
        "data": {
            "train": [{"path": "a.jsonl", "weight": 2}, {"path": "b.csv"}],
            "prompt": "ä: {t}\n",
            "completion": "{l}",
        },
        "train": {"max_steps": 3, "learning_rate": 0.25},
    }
)


@pytest.fixture
def plan(runtime, run):
    return Plan(
        stage="sft",
        name="reviews",
        run_folder=str(run.path),
        groups=[runtime.group],
        model=tiny.facts("llama"),
        memory=[],
        notes=[],
    )


def test_summary():
    assert summary(LINES, STATE, 1) == METRICS
    empty = summary([], TrainState(), 0)
    assert [key for key, value in empty.items() if value is not None] == ["num_tokens", "rows_left_out"]


def test_the_model_card(plan):
    card = model_card(CONFIG, plan, METRICS | {"unknown": None})
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {"library_name": "transformers", "tags": ["scaleup", "sft"]}
    config = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert SFTConfig.model_validate(config) == CONFIG, "the config is there, whole"
    for words in (
        "# reviews",
        "LlamaForCausalLM",
        "builtin:tiny-llama",
        f"{tiny.facts('llama').num_parameters:,} parameters",
        "a.jsonl (weight 2), b.csv (weight 1)",
        "1 (single, cpu, mixed precision no)",
        "| best_eval_loss | 2.5 |",
    ):
        assert words in body
    assert "unknown" not in body


@pytest.mark.parametrize("lines", [LINES, LINES[:1], LINES[2:3]])
def test_the_plot(tmp_path, lines):
    plot_losses(lines, tmp_path / "loss.png", "a run")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.format == "PNG" and image.size == (840, 480)
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_the_plot_shows_the_losses(tmp_path):
    plot_losses(LINES, tmp_path / "both.png", "a run")
    plot_losses([line for line in LINES if "loss" in line], tmp_path / "one.png", "a run")
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "one.png").read_bytes()


def test_the_manifest_comes_with_sizes_and_ends_the_run(run):
    run.resumable_file.write_text("{}")
    run.metrics_file.write_text("12345")
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text("{}")
    finish(run, "sft", "reviews", METRICS, 3)
    manifest = run.manifest()
    assert (manifest.stage, manifest.name, manifest.num_steps, manifest.metrics) == ("sft", "reviews", 3, METRICS)
    assert manifest.files == {"model/config.json": 2, "metrics.jsonl": 5}
    assert not run.resumable_file.exists()


def test_finishing_a_training(runtime, run, plan):
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert read_metrics(run.metrics_file) == LINES
    model, tokenizer = tiny.model("llama"), tiny.tokenizer("llama")
    finish_training(CONFIG, plan, runtime, run, model, tokenizer, STATE, 1)

    assert read_json(run.manifest_file)["metrics"] == METRICS
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        file.name for file in run.model.iterdir()
    }
    facts = tiny.facts("llama").model_copy(update={"location": str(run.model)})
    weights = model.state_dict()
    assert all((weights[key] == weight).all() for key, weight in load_model(CONFIG.model, facts).state_dict().items())
    again = load_tokenizer(CONFIG.model, str(run.model))
    assert again("a b")["input_ids"] == tokenizer("a b")["input_ids"] and again.chat_template


def test_a_decoder_that_classifies_is_saved_with_its_tokenizer_s_padding(runtime, plan, tmp_path):
    """Of which loading made one up: plain Transformers must refuse batches where pad is eos."""
    asked = ModelConfig(path=str(sharp_classifier_like("tiny-gpt2", tmp_path / "whole")))
    facts = model_facts(asked)
    model, tokenizer = load_model(asked, facts), load_tokenizer(asked, facts.location)
    tokenizer.pad_token = tokenizer.eos_token
    plain_padding(model, tokenizer)
    model.transformer.requires_grad_(False)  # so that the rest is read from the base again
    config, about = CONFIG.model_copy(update={"model": asked}), plan.model_copy(update={"model": facts})
    assert load_model(asked, facts).config.pad_token_id is not None
    result_writer(config, about, runtime, model)(tmp_path / "result")
    assert read_json(tmp_path / "result/config.json").get("pad_token_id") is None
