"""Rows of one's own beside the rollouts: their gradient is that of the mean cross-entropy of their tokens, times the
coefficient, however they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from scaleup.config.algorithms import GRPOAlgorithm, RolloutSettings
from scaleup.config.data import DataConfig
from scaleup.data.dataset import collator_for
from scaleup.data.tokenization import Encoder
from scaleup.records.examples import PromptCompletion
from scaleup.rl import OptimizationConfig, RLTrainer, Sample
from scaleup.rl.supervised import supervised_term
from tests.unit.data import tiny

RATE, COEF = 0.1, 0.4
ROWS = [("hello", " you"), ("what a film", " it was"), ("a", " b"), ("the story", " of it all")]


def equal(samples: Sequence[Sample]) -> list[float]:
    return [1.0] * len(samples)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_a_step_is_that_of_cross_entropy(tmp_path: Path, micro_batch: int) -> None:
    """Where all scores are equal nothing else is learned."""
    model, tokenizer = tiny.model("llama"), tiny.tokenizer("llama")
    plain = deepcopy(model)
    train = OptimizationConfig(
        learning_rate=RATE,
        optimizer="sgd",
        lr_scheduler_type="constant",
        per_device_train_batch_size=micro_batch,
        max_grad_norm=1e9,
        seed=0,
    )
    settings = GRPOAlgorithm(type="grpo", num_generations=2, ptx_coef=COEF, ptx_batch_size=4)
    rollouts = RolloutSettings(num_rollouts=1, batch_size=4, max_new_tokens=4)
    alone = settings.model_copy(update={"ptx_coef": 0.0})
    trainer = RLTrainer(model, tokenizer, ["x"], equal, alone, rollouts, train=train, output_dir=tmp_path)
    rows: Any = Encoder(tokenizer, "causal_lm", DataConfig())([PromptCompletion(*row) for row in ROWS])
    collate = collator_for("causal_lm", tokenizer.pad_token_id, None)
    trainer._job.supervised = supervised_term([(rows, 1.0)], collate, trainer.runtime, settings, train)
    trainer.train()

    batch = collate(rows)
    logits = plain(**batch.inputs).logits
    loss = COEF * torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        due = theirs - RATE * theirs.grad if theirs.grad is not None else theirs
        assert (ours - due).abs().max() < 1e-7, name
    assert max(float(theirs.grad.abs().max()) for theirs in plain.parameters() if theirs.grad is not None) > 1e-3
