"""What follows from a model's probabilities: the likeliest label, and the divergence from another model."""

import numpy as np
import pytest
import torch

from scaleup.config.data import DataConfig
from scaleup.config.evaluation import EvaluationConfig
from scaleup.data.tokenization import Encoder
from scaleup.evaluation.likelihood import divergence_scores, label_scores, with_answer
from scaleup.records.chats import Chat
from scaleup.records.examples import Opening, PlainText, PromptCompletion
from scaleup.train.losses import token_loss_sum
from tests.unit.data import tiny

LABELS = ["bad", "good", "very good"]
DATA = DataConfig(prompt="{p}", completion="{c}", max_length=64)


def parts(name):
    model, tokenizer = tiny.model(name).eval(), tiny.tokenizer(name)
    return model, Encoder(tokenizer, tiny.facts(name).task, DATA), tiny.collator(name, model)


@torch.no_grad()
def loss(model, encoder, collate, example):
    [row] = encoder([example])
    return token_loss_sum(model, collate([row])).item()


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_the_prediction_is_the_label_that_makes_the_completion_likeliest(runtime, name):
    model, encoder, collate = parts(name)
    rows = [PromptCompletion(f"{word} film:", f" {label}!") for word in ("a", "no", "my") for label in LABELS]
    rows = [*rows, PromptCompletion("x", " nothing"), PlainText("good")]
    settings = EvaluationConfig(metrics=["likelihood_accuracy", "likelihood_f1"], labels=LABELS, batch_size=4)
    accuracy, f1 = label_scores(runtime, model, rows, encoder, collate, settings)
    expected = []
    for row in rows[:9]:
        losses = [loss(model, encoder, collate, PromptCompletion(row.prompt, f" {label}!")) for label in LABELS]
        expected.append(float(row.completion == f" {LABELS[int(np.argmin(losses))]}!"))
    assert accuracy.by_row["likelihood_accuracy"][:9] == pytest.approx(expected) and 0 < sum(expected) < 9
    assert np.isnan(accuracy.by_row["likelihood_accuracy"][9:]).all()
    assert accuracy.result(0) == {"likelihood_accuracy": np.mean(expected), "rows_without_label": 2}
    assert set(f1.result(0)) == {"likelihood_f1_macro", "likelihood_f1_micro", "rows_without_label"}
    assert f1.result(0)["likelihood_f1_micro"] == pytest.approx(np.mean(expected)), "as each row has one of each"


def test_labels_are_written_as_the_rows_write_them(runtime):
    """A label that others write in small letters would lose by its case alone."""
    model, encoder, collate = parts("gpt2")
    seen = []

    class Seeing:
        task = encoder.task

        def __call__(self, examples):
            seen.extend(example.completion for example in examples)
            return encoder(examples)

    settings = EvaluationConfig(metrics=["likelihood_accuracy"], labels=["bad", "good"], batch_size=4)
    rows = [PromptCompletion("a", " Good."), PromptCompletion("a", " BAD"), PromptCompletion("a", " it is bad")]
    rows = [*rows, PromptCompletion("a", " goodness, it is good")]
    label_scores(runtime, model, rows, Seeing(), collate, settings)
    assert seen[:6] == [" Bad.", " Good.", " BAD", " GOOD", " it is bad", " it is good"]
    assert seen[6:] == [" goodness, it is bad", " goodness, it is good"], "a label is a whole word"


def test_no_row_has_a_label(runtime):
    model, encoder, collate = parts("gpt2")
    settings = EvaluationConfig(metrics=["likelihood_accuracy"], labels=LABELS)
    [scores] = label_scores(runtime, model, [PromptCompletion("a", " b")], encoder, collate, settings)
    assert scores.result(5) == {"rows_without_label": 1}


def test_an_answer_takes_the_place_of_the_last_one():
    assert with_answer(Opening("a"), "b") == PromptCompletion("a", "b") == with_answer(PromptCompletion("a", "c"), "b")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert with_answer(Chat(turns), "bye") == Chat([turns[0], {"role": "assistant", "content": "bye"}])
    assert with_answer(Opening(Chat(turns[:1])), "bye") == Chat([turns[0], {"role": "assistant", "content": "bye"}])


@pytest.mark.parametrize("name", ["gpt2", "bart"])
@torch.no_grad()
def test_kl_is_that_of_both_distributions(runtime, name):
    """Token by token over the whole vocabulary, by torch's own kl_div."""
    model, encoder, collate = parts(name)
    other = tiny.model(name).eval()
    for weight in other.parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    examples = [Opening("a:"), PromptCompletion("write something:", " b"), Opening("x")]
    answers = [" one", " and two of them", " or"]
    scores = divergence_scores(runtime, (model, other), examples, answers, encoder, collate, 2)
    expected, counts = [], []
    for example, answer in zip(examples, answers, strict=True):
        [row] = encoder([with_answer(example, answer)])
        batch = collate([row])
        log_p, log_q = (batch.places.select(each(**batch.inputs).logits).log_softmax(dim=-1) for each in (model, other))
        expected.append(torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True).item())
        counts.append(len(log_p))
    assert scores.by_row["kl"] == pytest.approx(expected, rel=1e-4) and min(expected) > 1e-3
    figures = scores.result(0)
    assert figures["kl"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert figures["kl_per_token"] == pytest.approx(sum(expected) / sum(counts), rel=1e-4)
    itself = divergence_scores(runtime, (model, model), examples, answers, encoder, collate, 2)
    assert itself.result(0) == {"kl": 0.0, "kl_per_token": 0.0}
