"""What people read of a training run: its summary, the loss curve, the model's card."""

import pytest
import yaml
from PIL import Image

from scaleup.artifacts.train_state import TrainState
from scaleup.config.stages.sft import SFTConfig
from scaleup.reports.training import model_card, plot_losses, summary
from tests.unit.data import tiny

LINES = [
    {"step": 1, "loss": 3.0, "grad_norm": 1.0},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_loss": 2.5},
    {"step": 3, "loss": 1.0},
    {"step": 3, "eval_loss": 2.75},
]
STATE = TrainState(step=3, num_tokens=42, best_metric=2.5, best_step=2)
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


def test_summary():
    assert summary(LINES, STATE, {"unlearned": 1}) == METRICS
    assert summary(LINES, STATE, {"too_long": 1}) == METRICS | {"rows_too_long": 1}
    empty = summary([], TrainState(), {})
    assert [key for key, value in empty.items() if value is not None] == ["num_tokens", "rows_left_out"]


def test_the_model_card(tmp_path):
    card = model_card(CONFIG, tiny.plan(tmp_path), METRICS | {"unknown": None})
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
    assert "unknown" not in body and "ends of an answer" not in body


def test_an_adapters_card_says_how_its_answers_end(tmp_path):
    """PEFT takes what its base declares."""
    for name, says in (("llama", True), ("bert-classifier", False)):
        facts = tiny.facts(name).model_copy(update={"adapter": "somewhere"})
        card = model_card(CONFIG, tiny.plan(tmp_path, model=facts), METRICS)
        assert ("GenerationConfig.from_pretrained" in card) is says
        assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "peft"


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
