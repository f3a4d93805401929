"""One model's numbers on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.config.schema import ModelConfig
from scaleup.config.stages import EvaluateConfig
from scaleup.data.dataset import collator_for
from scaleup.data.loader import eval_batches
from scaleup.data.tokenization import Encoder, last_answer
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.evaluation.generation import generate_answers
from scaleup.evaluation.metrics import perplexity, score_answers
from scaleup.models.adapted import load_finished
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.plan.facts import ModelFacts
from scaleup.records.examples import Chat, Example, PlainText
from scaleup.train.head_loss import fuse_head
from scaleup.train.losses import token_loss_sum
from scaleup.train.step import evaluate_loss


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, Any]
    answers: list[str] | None
    """Generated answers in the rows' order, where a metric needs them."""


def evaluate_model(
    config: EvaluateConfig,
    runtime: Runtime,
    model_config: ModelConfig,
    facts: ModelFacts,
    examples: Sequence[Example],
    parts: Path,
    name: str,
) -> Evaluation:
    """Load a model and measure it. Every rank must call it and gets the whole result."""
    settings = config.evaluation
    runtime.progress.report(f"loading {name}")
    tokenizer = load_tokenizer(model_config, facts.tokenizer_location or facts.location)
    model: Any = load_finished(model_config, facts, config.quantization, config.mixed_precision, runtime.device)
    fuse_head(model)
    encoder = Encoder(tokenizer, facts.task, config.data)
    rows = [row for row in encoder(examples) if row is not None]
    metrics: dict[str, Any] = {"rows": len(rows)}
    if "perplexity" in settings.metrics:
        if not rows:
            what = f"no row fits max_length {config.data.max_length} with a label left"
            raise ScaleupError.of(f"data.{settings.split}", what, "raise data.max_length")
        runtime.progress.report(f"perplexity of {name}")
        shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        collate = collator_for(facts.task, pad_token_id(tokenizer), shift_right)
        batches = eval_batches(rows, collate, settings.batch_size, runtime.rank, runtime.world)
        with runtime.accelerator.autocast():
            loss = evaluate_loss(runtime, model, batches, token_loss_sum)
        metrics |= {"loss": loss, "perplexity": perplexity(loss)}
    if set(settings.metrics) == {"perplexity"}:
        return Evaluation(metrics, None)
    model.eval()
    asked = [example for example in examples if not isinstance(example, PlainText)]
    prompts, references = encoder.prompts(asked), [reference(example) for example in asked]
    answers = generate_answers(
        runtime, model, tokenizer, prompts, config.generation, settings.batch_size, parts, f"answers of {name}"
    )
    return Evaluation(metrics | score_answers(settings.metrics, answers, references, settings.labels), answers)


def reference(example: Example) -> str:
    """What the answer should be: the completion, or the assistant's last words."""
    if isinstance(example, PlainText):
        return ""
    if isinstance(example, Chat):
        return example.messages[last_answer(example)]["content"].strip()
    return example.completion.strip()
