"""Our divergence against TRL's: the loss of its GKD trainer, the kernel and a step of its distillation trainer."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from scaleup.config.stages.distill import DistillSettings
from scaleup.data.collate import causal_collator, pad
from scaleup.data.tokenization import IGNORE, Tokens
from scaleup.distill.divergence import divergence_
from scaleup.distill.on_policy import OnPolicyDistillation, on_policy_loss
from tests.unit.data import tiny
from tests.unit.distill.test_language import teacher_of


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_to_generalized_jsd(beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 9, 60, requires_grad=True), torch.randn(2, 9, 60)
    wanted = GKDTrainer.generalized_jsd_loss(student, teacher, None, beta, temperature, reduction="sum")
    wanted.backward()
    assert student.grad is not None
    logits = student.detach().flatten(0, 1).clone()
    found = divergence_(logits, teacher.flatten(0, 1).clone(), beta, temperature)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (logits - student.grad.flatten(0, 1)).abs().max() < 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_equal_to_the_kernel(beta: float) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    torch.manual_seed(0)
    student, teacher = torch.randn(11, 8), torch.randn(11, 6)
    weights = torch.randn(60, 8), torch.randn(60, 6)
    each, _ = ChunkedDivergenceFunction.apply(student, weights[0], None, teacher, weights[1], None, beta, 2.0)
    logits = student @ weights[0].T
    found = divergence_(logits, teacher @ weights[1].T, beta, 2.0)
    assert found.item() == pytest.approx(each.sum().item(), rel=1e-5)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_a_step_on_own_answers_equals_the_trainers(divergence: str, tmp_path: Path) -> None:
    """Loss and gradients of TRL's DistillationTrainer on the same prompts and answers, of several lengths."""
    from trl import DistillationConfig, DistillationTrainer

    settings = DistillSettings(mode="on_policy", divergence=divergence, alpha=1.0)  # type: ignore[arg-type]
    student, teacher = tiny.model("llama"), teacher_of("llama")
    prompts, answers = [[5, 6, 7], [8], [9, 10]], [[11, 12, 1], [13, 14, 15, 16], [17]]
    ids, mask = pad(prompts, 0, left=True)
    completions, completion_mask = pad(answers, 0)
    arguments = DistillationConfig(str(tmp_path), beta=settings.jsd_beta, use_cpu=True, report_to=[], bf16=False)
    trainer = DistillationTrainer(
        model=deepcopy(student),
        teacher_model=teacher,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=tiny.tokenizer("llama"),
    )
    inputs = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": completions, "completion_mask": completion_mask}
    wanted, *_ = trainer._compute_loss(trainer.model, inputs, None)
    wanted.backward()

    whole = OnPolicyDistillation(student, deepcopy(teacher), settings)
    rows = [
        Tokens(np.array(prompt + answer), np.array([IGNORE] * len(prompt) + answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    batch = causal_collator(0)(rows)
    found = on_policy_loss(whole, batch) / batch.num_labels
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), abs=1e-6)
    for own, other in zip(student.parameters(), trainer.model.parameters(), strict=True):
        assert (own.grad - other.grad).abs().max() < 1e-6
