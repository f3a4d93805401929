"""Models and held-out rows go in; loss, perplexity, answers and their scores come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.config.adapters import Quantization
from scaleup.config.data import DataConfig
from scaleup.config.schema import EvaluationConfig, GenerationConfig, MixedPrecision, ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.collate import Collator
from scaleup.data.loader import eval_batches
from scaleup.data.tokenization import Encoder, TokenRow, last_answer, own_template
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.errors import ScaleupError
from scaleup.evaluation.metrics import score_answers
from scaleup.evaluation.toxicity import measure_toxicity
from scaleup.models.adapted import each_adapter, load_finished
from scaleup.models.generation import Generator
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, Opening, PlainText
from scaleup.train.head_loss import fuse_head
from scaleup.train.job import Job
from scaleup.train.losses import token_loss_sum
from scaleup.train.metrics import perplexity
from scaleup.train.reading import language_collator
from scaleup.train.step import evaluate_loss

Row = Example | Opening


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, Any]
    answers: list[str] | None
    """Generated answers in the rows' order, where a metric needs them."""


@dataclass(frozen=True)
class Evaluator:
    """Measures any number of models on the same rows, with the same settings. Every rank must make the same calls and
    gets the whole results."""

    runtime: Runtime
    examples: Sequence[Row]
    data: DataConfig
    evaluation: EvaluationConfig
    generation: GenerationConfig
    parts: Path
    """The folder in which ranks leave their answers for one another."""
    by_own_template: bool = False
    """Whether a model reads conversations by its own template, where it has one."""

    def evaluate(self, model: Any, tokenizer: PreTrainedTokenizerBase, task: str, name: str) -> Evaluation:
        """Return the numbers of a loaded model: the same, whatever was loaded and measured before.

        Raises ScaleupError if perplexity is asked for and no row is left for it."""
        runtime, settings, examples = self.runtime, self.evaluation, self.examples
        seed_everything(runtime.rank)
        fuse_head(model)
        data = own_template(tokenizer, self.data) if self.by_own_template else self.data
        encoder = Encoder(tokenizer, task, data)
        whole = [example for example in examples if not isinstance(example, Opening)]
        rows = [row for row in encoder(whole) if row is not None]
        metrics: dict[str, Any] = {"rows": len(rows) + len(examples) - len(whole)}
        if "perplexity" in settings.metrics:
            if not rows:
                what = f"no row fits max_length {self.data.max_length} with a label left"
                raise ScaleupError.of(f"data.{settings.split}", what, "raise data.max_length")
            runtime.progress.report(f"perplexity of {name}")
            loss = mean_loss(runtime, model, language_collator(model, tokenizer, task), rows, settings.batch_size)
            metrics |= {"loss": loss, "perplexity": perplexity(loss)}
        if set(settings.metrics) == {"perplexity"}:
            return Evaluation(metrics, None)
        model.eval()
        prompted = [example for example in examples if not isinstance(example, PlainText)]
        references = [reference(example) for example in prompted]
        generator = Generator(runtime, model, tokenizer, self.generation, settings.batch_size, self.parts)
        answers = generator.answers(encoder.prompts(prompted, generator.most_tokens), f"answers of {name}")
        if count := encoder.truncated["prompts"]:
            metrics["prompts_truncated"] = count
        return Evaluation(metrics | score_answers(settings.metrics, answers, references, settings.labels), answers)


def evaluate_models(job: Job[EvaluateConfig], examples: Sequence[Row]) -> dict[str, Evaluation]:
    """Evaluate each column of the results: the model, after its baseline; or the base and each of its adapters. Every
    rank must call it and gets the whole result."""
    config = job.config
    evaluator = Evaluator(job.runtime, examples, config.data, config.evaluation, config.generation, job.parts)
    columns = _side_by_side if config.adapters else _before_and_after
    results = columns(job, evaluator)
    if "toxicity" not in config.evaluation.metrics:
        return results
    answers = {name: result.answers or [] for name, result in results.items()}
    toxicity = measure_toxicity(job, answers)
    return {name: replace(result, metrics=result.metrics | toxicity[name]) for name, result in results.items()}


def _before_and_after(job: Job[EvaluateConfig], evaluator: Evaluator) -> dict[str, Evaluation]:
    config, plan = job.config, job.plan
    columns = {"model": (evaluator, config.model, plan.model)}
    if config.baseline is not None:
        other = replace(evaluator, by_own_template=config.baseline_chat_template == "own")
        columns = {"baseline": (other, config.baseline, plan.models["baseline"]), **columns}
    return {
        name: evaluate_model(*column, name, config.quantization, config.mixed_precision)
        for name, column in columns.items()
    }


def _side_by_side(job: Job[EvaluateConfig], evaluator: Evaluator) -> dict[str, Evaluation]:
    """Load the base once, and measure it before anything is put on it."""
    config, runtime, model, facts = job.config, job.runtime, job.config.model, job.plan.model
    runtime.progress.report("loading the base")
    base = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    tokenizer = load_tokenizer(model, facts.location)
    results = {"baseline": evaluator.evaluate(base, tokenizer, facts.task, "the base")}
    for name, adapted, own in each_adapter(base, model, facts, config.adapters or {}):
        results[name] = evaluator.evaluate(adapted, own, facts.task, name)
    return results


def evaluate_model(
    evaluator: Evaluator,
    model_config: ModelConfig,
    facts: ModelFacts,
    name: str,
    quantization: Quantization | None = None,
    mixed_precision: MixedPrecision = "no",
) -> Evaluation:
    """Load a model and evaluate it. Every rank must call it and gets the whole result."""
    evaluator.runtime.progress.report(f"loading {name}")
    tokenizer = load_tokenizer(model_config, facts.tokenizer_at)
    model = load_finished(model_config, facts, quantization, mixed_precision, evaluator.runtime.device)
    return evaluator.evaluate(model, tokenizer, facts.task, name)


def mean_loss(runtime: Runtime, model: Any, collate: Collator, rows: Sequence[TokenRow], batch_size: int) -> float:
    """Return the mean loss over all rows, in nats a labelled token. Every rank must call it and gets the same."""
    batches = eval_batches(rows, collate, batch_size, runtime.rank, runtime.world)
    with runtime.accelerator.autocast():
        return evaluate_loss(runtime, model, batches, token_loss_sum)


def reference(example: Row) -> str:
    """Return what the answer should be: the completion, or the assistant's last turn; empty if the row has neither."""
    if isinstance(example, PlainText | Opening):
        return ""
    if isinstance(example, Chat):
        return (example.messages[last_answer(example)].get("content") or "").strip()
    return example.completion.strip()
