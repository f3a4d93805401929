"""Models and held-out rows go in; loss, perplexity, answers and their scores come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.timeline import UNNOTED, Timeline
from scaleup.config.adapters import Quantization
from scaleup.config.data import DataConfig
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.schema import GenerationConfig, MixedPrecision, ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.collate import Collator
from scaleup.data.loader import eval_batches
from scaleup.data.tokenization import Encoder, TokenRow, last_answer, own_template
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.errors import ScaleupError
from scaleup.evaluation.foreign import Answered, foreign_scores
from scaleup.evaluation.harness import Benchmarks, load_benchmarks
from scaleup.evaluation.likelihood import divergence_scores, label_scores, prompt_of, row_losses
from scaleup.evaluation.metrics import perplexity_scores, placed, score_answers
from scaleup.evaluation.scorers import measure_scores
from scaleup.evaluation.scores import Scores, of_row
from scaleup.evaluation.win_rate import measure_wins
from scaleup.models.adapted import each_adapter, load_finished
from scaleup.models.generation import Generator
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, Opening, PlainText, PromptCompletion
from scaleup.train.job import Job
from scaleup.train.losses import token_loss_sum
from scaleup.train.reading import language_collator
from scaleup.train.step import evaluate_loss
from scaleup.train.token_head import swap_token_head

Row = Example | Opening


@dataclass(frozen=True)
class Evaluation:
    """Holds what was measured of one model."""

    num_rows: int
    scores: Sequence[Scores]
    answers: list[str] | None
    """Holds generated answers in the rows' order, where a metric needs them."""
    num_samples: int
    """Counts the bootstrap samples from which intervals are taken."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Holds figures that follow from no scores of rows."""

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Return all figures, with their intervals."""
        made = {name: value for each in self.scores for name, value in each.result(self.num_samples).items()}
        rows = {"rows": self.num_rows} if self.num_rows else {}
        return {**rows, **made, **self.figures}

    def of_row(self, place: int) -> dict[str, float | None]:
        """Return what the metrics tell of the row at a place."""
        return of_row({name: each for scores in self.scores for name, each in scores.by_row.items()}, place)


@dataclass(frozen=True)
class Evaluator:
    """Measures any number of models on the same rows, with the same settings. Every rank must make the same calls and
    gets the whole results, but for those of others' code: benchmarks, the library `evaluate` and functions are rank
    0's."""

    runtime: Runtime
    examples: Sequence[Row]
    data: DataConfig
    evaluation: EvaluationConfig
    generation: GenerationConfig
    parts: Path
    """The folder in which ranks leave their answers for one another."""
    by_own_template: bool = False
    """Whether a model reads conversations by its own template, where it has one."""
    load_reference: Callable[[], Any] | None = None
    """Loads the model from which `kl` is measured."""
    timeline: Timeline = UNNOTED
    """Notes how long measuring each column took, and writing its answers."""
    keeps_answers: bool = False
    """Whether answers stay in `parts`, so that a run that goes on does not generate them again."""
    benchmarks: Benchmarks | None = None
    """Measures `evaluation.tasks`, where there are any."""

    def evaluate(self, model: Any, tokenizer: PreTrainedTokenizerBase, task: str, name: str) -> Evaluation:
        """Return the numbers of a loaded model: the same, whatever was loaded and measured before.

        Raises ScaleupError if perplexity is asked for and no row is left for it, and where a metric of a user's own
        fails."""
        runtime, settings, examples = self.runtime, self.evaluation, self.examples
        benchmarked = self.benchmarks.measure(model, tokenizer, task, name) if self.benchmarks else {}
        if not settings.metrics:
            return Evaluation(0, [], None, settings.bootstrap_samples, benchmarked)
        seed_everything(runtime.rank)
        swap_token_head(model)
        data = own_template(tokenizer, self.data) if self.by_own_template else self.data
        encoder = Encoder(tokenizer, task, data)
        collate = language_collator(model, tokenizer, task)
        scores, num_rows = self._likelihoods(model, encoder, collate, name)
        if not settings.needs_answers:
            return Evaluation(num_rows, scores, None, settings.bootstrap_samples, benchmarked)
        model.eval()
        prompted = with_prompt(examples)
        references = [reference(example) for example in prompted]
        how = (self.generation, settings.batch_size, self.parts)
        generator = Generator(runtime, model, tokenizer, *how, keeps=self.keeps_answers)
        what = f"answers of {name}"
        with self.timeline.span(what):
            answers = generator.answers(encoder.prompts(prompted, generator.most_tokens), what)
        truncated = encoder.truncated["prompts"]
        told = score_answers(settings.metrics, answers, references, settings.labels)
        if "kl" in settings.metrics:
            assert self.load_reference is not None, "the plan refuses kl without a reference"
            runtime.progress.report(f"divergence of {name}")
            models = (model, self.load_reference())
            told.append(divergence_scores(runtime, models, prompted, answers, encoder, collate, settings.batch_size))
        others: list[Scores] = []
        figures: dict[str, Any] = {}
        if runtime.is_main:  # code of others may cost money, or differ from one call to the next
            texts = [encoder.as_text(prompt_of(example)) for example in prompted]
            asked = Answered(texts, answers, references)
            others, figures = foreign_scores(settings.metrics, asked, settings.bootstrap_samples)
        figures |= {"prompts_truncated": truncated} if truncated else {}
        has_prompt = np.array([not isinstance(example, PlainText) for example in examples], bool)
        scores += [placed(each, has_prompt) for each in [*told, *others]]
        return Evaluation(num_rows, scores, answers, settings.bootstrap_samples, {**figures, **benchmarked})

    def _likelihoods(self, model: Any, encoder: Encoder, collate: Collator, name: str) -> tuple[list[Scores], int]:
        """Return what follows from the probabilities of completions, and how many rows the model reads."""
        runtime, settings, examples = self.runtime, self.evaluation, self.examples
        is_whole = np.array([not isinstance(example, Opening) for example in examples], bool)
        whole = [example for example in examples if not isinstance(example, Opening)]
        rows = encoder(whole)
        known = np.array([row is not None for row in rows], bool)
        kept = [row for row in rows if row is not None]
        scores = []
        if "perplexity" in settings.metrics:
            if not kept:
                what = f"no row fits max_length {self.data.max_length} with a label left"
                raise ScaleupError.of(f"data.{settings.split}", what, "raise data.max_length")
            runtime.progress.report(f"perplexity of {name}")
            losses = row_losses(runtime, model, kept, collate, settings.batch_size)
            counts = np.array([row.num_positions(encoder.task) for row in kept], float)
            scores.append(placed(perplexity_scores(losses, counts), known))
        if {"likelihood_accuracy", "likelihood_f1"} & set(settings.metrics):
            runtime.progress.report(f"likelihoods of labels of {name}")
            scores += label_scores(runtime, model, whole, encoder, collate, settings)
        return [placed(each, is_whole) for each in scores], len(kept) + len(examples) - len(whole)


def evaluate_models(job: Job[EvaluateConfig], examples: Sequence[Row]) -> dict[str, Evaluation]:
    """Evaluate each column of the results: the model, after its baseline; the model and each of the others; or the base
    and each of its adapters. Every rank must call it and gets the whole result."""
    config = job.config
    evaluator = Evaluator(
        job.runtime,
        examples,
        config.data,
        config.evaluation,
        config.generation,
        job.parts,
        load_reference=_reference_loader(job),
        timeline=job.timeline,
        keeps_answers=True,
        benchmarks=load_benchmarks(job),
    )
    columns = _side_by_side if config.adapters else _before_and_after
    results = columns(job, evaluator)
    answers = {name: result.answers for name, result in results.items() if result.answers is not None}
    has_prompt = np.array([not isinstance(example, PlainText) for example in examples], bool)
    measured = measure_scores(job, with_prompt(examples), answers)
    won = measure_wins(job, with_prompt(examples), answers)
    scores = {name: [*measured.get(name, []), *won.get(name, [])] for name in results}
    placed_scores = {name: [placed(each, has_prompt) for each in of] for name, of in scores.items()}
    return {name: replace(of, scores=[*of.scores, *placed_scores[name]]) for name, of in results.items()}


def _reference_loader(job: Job[EvaluateConfig]) -> Callable[[], Any]:
    """Return what loads the model from which the divergence is measured, once."""
    config = job.config
    loaded: list[Any] = []

    def load() -> Any:
        if not loaded:
            key = "evaluation.reference" if config.evaluation.reference else "baseline"
            model = config.evaluation.reference or config.baseline
            assert model is not None, "the plan refuses kl without a reference"
            facts = job.plan.models[key]
            loaded.append(
                load_finished(model, facts, config.quantization, config.mixed_precision, job.runtime.device).eval()
            )
        return loaded[0]

    return load


def _before_and_after(job: Job[EvaluateConfig], evaluator: Evaluator) -> dict[str, Evaluation]:
    config, results = job.config, {}
    for name, (key, model) in config.columns.items():
        reader = replace(evaluator, by_own_template=key == "baseline" and config.baseline_chat_template == "own")
        facts = job.plan.facts_of(key)
        results[name] = evaluate_model(reader, model, facts, name, config.quantization, config.mixed_precision)
    return results


def _side_by_side(job: Job[EvaluateConfig], evaluator: Evaluator) -> dict[str, Evaluation]:
    """Load the base once, and measure it before anything is put on it."""
    config, runtime, model, facts = job.config, job.runtime, job.config.model, job.plan.model
    runtime.progress.report("loading the base")
    base = load_finished(model, facts, config.quantization, config.mixed_precision, runtime.device)
    tokenizer = load_tokenizer(model, facts.location)
    with evaluator.timeline.span("evaluation of baseline"):
        results = {"baseline": evaluator.evaluate(base, tokenizer, facts.task, "baseline")}
    for name, adapted, own in each_adapter(base, model, facts, config.adapters or {}):
        with evaluator.timeline.span(f"evaluation of {name}"):
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
    with evaluator.timeline.span(f"evaluation of {name}"):
        return evaluator.evaluate(model, tokenizer, facts.task, name)


def mean_loss(runtime: Runtime, model: Any, collate: Collator, rows: Sequence[TokenRow], batch_size: int) -> float:
    """Return the mean loss over all rows, in nats a labelled token. Every rank must call it and gets the same."""
    batches = eval_batches(rows, collate, batch_size, runtime.rank, runtime.world)
    with runtime.accelerator.autocast():
        return evaluate_loss(runtime, model, batches, token_loss_sum)


def with_prompt(examples: Sequence[Row]) -> list[PromptCompletion | Chat | Opening]:
    """Return the rows that a model can answer."""
    return [example for example in examples if not isinstance(example, PlainText)]


def reference(example: Row) -> str:
    """Return what the answer should be: the completion, or the assistant's last turn; empty if the row has neither."""
    if isinstance(example, PlainText | Opening):
        return ""
    if isinstance(example, Chat):
        return (example.messages[last_answer(example)].get("content") or "").strip()
    return example.completion.strip()
