"""The numbers of models on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.config.schema import ModelConfig
from scaleup.config.stages import EvaluateConfig
from scaleup.data.collate import Collator
from scaleup.data.loader import eval_batches
from scaleup.data.tokenization import Encoder, Tokens, last_answer
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.errors import ScaleupError
from scaleup.evaluation.generation import generate_answers
from scaleup.evaluation.metrics import perplexity, score_answers
from scaleup.evaluation.toxicity import measure_toxicity
from scaleup.models.adapted import each_adapter, load_finished
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import Plan
from scaleup.records.examples import Chat, Example, Opening, PlainText
from scaleup.train.head_loss import fuse_head
from scaleup.train.losses import token_loss_sum
from scaleup.train.reading import language_collator
from scaleup.train.step import evaluate_loss

Row = Example | Opening


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, Any]
    answers: list[str] | None
    """Generated answers in the rows' order, where a metric needs them."""


def evaluate_models(
    config: EvaluateConfig, plan: Plan, runtime: Runtime, examples: Sequence[Row], parts: Path
) -> dict[str, Evaluation]:
    """Of each column of the results: the model, after its baseline; or the base and each of its adapters. Every rank
    must call it and gets the whole result."""
    columns = _side_by_side if config.adapters else _before_and_after
    results = columns(config, plan, runtime, examples, parts)
    if "toxicity" not in config.evaluation.metrics:
        return results
    answers = {name: result.answers or [] for name, result in results.items()}
    found = measure_toxicity(config, plan, runtime, answers)
    return {name: replace(result, metrics=result.metrics | found[name]) for name, result in results.items()}


def _before_and_after(
    config: EvaluateConfig, plan: Plan, runtime: Runtime, examples: Sequence[Row], parts: Path
) -> dict[str, Evaluation]:
    results: dict[str, Evaluation] = {}
    if config.baseline is not None and plan.baseline is not None:
        results["baseline"] = evaluate_model(
            config, runtime, config.baseline, plan.baseline, examples, parts, "baseline"
        )
    results["model"] = evaluate_model(config, runtime, config.model, plan.model, examples, parts, "model")
    return results


def _side_by_side(
    config: EvaluateConfig, plan: Plan, runtime: Runtime, examples: Sequence[Row], parts: Path
) -> dict[str, Evaluation]:
    """The base is loaded once, and measured before anything is put on it."""
    model, facts = config.model, plan.model
    runtime.progress.report("loading the base")
    base = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    tokenizer = load_tokenizer(model, facts.location)
    results = {"baseline": measure(config, runtime, base, tokenizer, facts.task, examples, parts, "the base")}
    for name, adapted, own in each_adapter(base, model, facts, config.adapters or {}):
        results[name] = measure(config, runtime, adapted, own, facts.task, examples, parts, name)
    return results


def evaluate_model(
    config: EvaluateConfig,
    runtime: Runtime,
    model_config: ModelConfig,
    facts: ModelFacts,
    examples: Sequence[Row],
    parts: Path,
    name: str,
) -> Evaluation:
    """Load a model and measure it. Every rank must call it and gets the whole result."""
    runtime.progress.report(f"loading {name}")
    tokenizer = load_tokenizer(model_config, facts.tokenizer_location or facts.location)
    model = load_finished(model_config, facts, config.quantization, config.mixed_precision, runtime.device)
    return measure(config, runtime, model, tokenizer, facts.task, examples, parts, name)


def measure(
    config: EvaluateConfig,
    runtime: Runtime,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    examples: Sequence[Row],
    parts: Path,
    name: str,
) -> Evaluation:
    """The numbers of a loaded model: the same, whatever was loaded and measured before."""
    settings = config.evaluation
    seed_everything(runtime.rank)
    fuse_head(model)
    encoder = Encoder(tokenizer, task, config.data)
    whole = [example for example in examples if not isinstance(example, Opening)]
    rows = [row for row in encoder(whole) if row is not None]
    metrics: dict[str, Any] = {"rows": len(rows) + len(examples) - len(whole)}
    if "perplexity" in settings.metrics:
        if not rows:
            what = f"no row fits max_length {config.data.max_length} with a label left"
            raise ScaleupError.of(f"data.{settings.split}", what, "raise data.max_length")
        runtime.progress.report(f"perplexity of {name}")
        loss = mean_loss(runtime, model, language_collator(model, tokenizer, task), rows, settings.batch_size)
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


def mean_loss(runtime: Runtime, model: Any, collate: Collator, rows: Sequence[Tokens], batch_size: int) -> float:
    """Nats a labelled token over all rows. Every rank must call it and gets the same."""
    batches = eval_batches(rows, collate, batch_size, runtime.rank, runtime.world)
    with runtime.accelerator.autocast():
        return evaluate_loss(runtime, model, batches, token_loss_sum)


def reference(example: Row) -> str:
    """What the answer should be: the completion, or the assistant's last words; nothing where nothing says it."""
    if isinstance(example, PlainText | Opening):
        return ""
    if isinstance(example, Chat):
        return example.messages[last_answer(example)]["content"].strip()
    return example.completion.strip()
