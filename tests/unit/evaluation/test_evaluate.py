"""A model's numbers on held-out rows."""

import math

import pytest
import torch

from scaleup.config.data import DataConfig
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.tokenization import IGNORE
from scaleup.errors import ScaleupError
from scaleup.evaluation.evaluate import Evaluator, evaluate_model, evaluate_models, reference
from scaleup.records.chats import Chat
from scaleup.records.examples import PlainText, PromptCompletion
from scaleup.train.job import Job
from scaleup.train.losses import token_loss_sum
from tests.unit.data import tiny


def evaluated(runtime, run, name, examples=tiny.PAIRS, max_length=512, **evaluation):
    data = DataConfig(prompt="{p}", completion="{c}", max_length=max_length)
    settings = EvaluationConfig.model_validate({"bootstrap_samples": 0, **evaluation})
    generation = GenerationConfig(max_new_tokens=4)
    evaluator = Evaluator(runtime, examples, data, settings, generation, run.path / ".parts")
    return evaluate_model(evaluator, tiny.model_config(name), tiny.facts(name), "model")


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_perplexity_is_the_same_in_any_batches(runtime, run, name, batch_size):
    model, rows = tiny.model(name).eval(), tiny.encode(name)
    collate = tiny.collator(name, model)
    with torch.no_grad():
        total = sum(token_loss_sum(model, collate([row])).item() for row in rows)
    mean = total / sum(int((collate([row]).labels != IGNORE).sum()) for row in rows)
    result = evaluated(runtime, run, name, batch_size=batch_size)
    assert result.metrics["loss"] == pytest.approx(mean, abs=1e-5)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert result.metrics["rows"] == len(rows) and result.answers is None


def test_answers_are_scored(runtime, run):
    result = evaluated(runtime, run, "llama", metrics=["exact_match", "accuracy"], labels=["bad", "yes"])
    assert len(result.answers) == len(tiny.PAIRS)
    assert result.metrics.pop("references_without_label") == sum(
        "bad" not in pair.completion and "yes" not in pair.completion for pair in tiny.PAIRS
    )
    assert result.metrics == {"rows": len(tiny.PAIRS), "exact_match": 0.0, "accuracy": 0.0, "answers_without_label": 5}


def test_no_row_is_no_perplexity_of_one(runtime, run):
    with pytest.raises(ScaleupError, match="no row fits max_length 2"):
        evaluated(runtime, run, "llama", examples=tiny.PAIRS[:2], max_length=2)


@pytest.mark.parametrize("reads", ["data", "own"])
def test_a_teacher_is_measured_by_its_own_template(runtime, run, tmp_path, reads):
    """What `data.chat_template` names is the student's; a run's base reads by it too."""
    (tmp_path / "x.jinja").write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    path = {"path": "builtin:tiny-llama"}
    data = {"test": "x.jsonl", "messages": "messages", "chat_template": str(tmp_path / "x.jinja")}
    raw = {"stage": "evaluate", "name": "x", "model": path, "baseline": path, "baseline_chat_template": reads}
    config = EvaluateConfig.model_validate({**raw, "data": data})
    job = Job(config, tiny.plan(run.path, models={"baseline": tiny.facts("llama")}), runtime, run)
    chat = Chat([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    found = evaluate_models(job, [chat])
    assert (found["model"].metrics == found["baseline"].metrics) is (reads == "data")
    [row] = tiny.encode("llama", [chat])
    model = tiny.model("llama").eval()
    with torch.no_grad():
        batch = tiny.collator("llama", model)([row])
        alone = token_loss_sum(model, batch).item() / batch.num_labels
    assert (found["baseline"].metrics["loss"] == pytest.approx(alone, abs=1e-5)) is (reads == "own")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (PromptCompletion("a:", " b\n"), "b"),
        (PlainText("a"), ""),
        (
            Chat(
                [
                    {"role": "assistant", "content": "first"},
                    {"role": "assistant", "content": " second "},
                    {"role": "user", "content": "thanks"},
                ]
            ),
            "second",
        ),
    ],
)
def test_references(example, words):
    assert reference(example) == words
