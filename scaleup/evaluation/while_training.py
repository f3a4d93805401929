"""A model in training and its validation rows go in; figures of its answers to them come out, under every strategy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.base import SupervisedConfig
from scaleup.config.stages.rl import PolicyConfig
from scaleup.data.chat import answer_ends
from scaleup.data.prompts import Prompt
from scaleup.data.rows import Rows
from scaleup.data.sources import read_examples
from scaleup.data.tokenization import IGNORE, PreferenceTokens, Tokens, UnpairedTokens
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.evaluation.evaluate import reference
from scaleup.evaluation.foreign import Answered, foreign_scores
from scaleup.evaluation.metrics import score_answers
from scaleup.models.beside import unwrap
from scaleup.models.generation import Generator, answer_texts
from scaleup.train.fit import Feed
from scaleup.train.job import Job


@dataclass(frozen=True)
class Question:
    """Holds the token ids of a prompt, and those that should follow it."""

    prompt: list[int]
    reference: list[int]


def question_of(row: Any, task: str) -> Question | None:
    """Return what a language model is asked of a validation row: of a conversation the assistant's last turn, of a pair
    the chosen response; None of a row that holds no prompt, or an undesirable response."""
    if isinstance(row, PreferenceTokens):
        return question_of(row.chosen, task)
    if isinstance(row, UnpairedTokens):
        return question_of(row.response, task) if row.is_desirable else None
    assert isinstance(row, Tokens), "the plan refuses what is no text to answer"
    if task == "seq2seq_lm":
        return Question(row.input_ids.tolist(), row.labels.tolist())
    learned = row.labels != IGNORE
    end = int(np.flatnonzero(learned)[-1]) + 1
    silent = np.flatnonzero(~learned[:end])
    start = int(silent[-1]) + 1 if silent.size else 0
    return Question(row.input_ids[:start].tolist(), row.input_ids[start:end].tolist()) if start else None


@dataclass(frozen=True)
class AnswersInTraining:
    """Lets a model answer the first validation rows, the same ones at each evaluation."""

    job: Job[SupervisedConfig]
    generation: GenerationConfig
    tokenizer: PreTrainedTokenizerBase
    questions: Sequence[Question]
    model: Any
    """Is the model under the run's strategy."""
    part: str | None
    """Is the name of the module within the model that answers; None: all of it."""

    def measure(self) -> dict[str, float]:
        """Return the figures of `train.eval_metrics`. Every rank must call it and gets all of them."""
        config, runtime, model = self.job.config, self.job.runtime, self.model
        network = unwrap(model)
        network = network if self.part is None else network.get_submodule(self.part)
        model.eval()
        with runtime.generating(model, network) as together:
            generator = Generator(
                runtime,
                network,
                self.tokenizer,
                self.generation,
                config.train.per_device_eval_batch_size,
                self.job.parts,
                together,
            )
            answers = generator.answers([each.prompt for each in self.questions], "answering validation rows")
        model.train()
        return self._figures(answers)

    def _figures(self, answers: Sequence[str]) -> dict[str, float]:
        config, tokenizer = self.job.config, self.tokenizer
        is_seq2seq = self.job.plan.model.task == "seq2seq_lm"
        prompts = [each.prompt for each in self.questions]
        ends = answer_ends(tokenizer)
        wanted = answer_texts(tokenizer, None if is_seq2seq else prompts, [q.reference for q in self.questions], ends)
        texts = tokenizer.batch_decode(prompts, skip_special_tokens=True)
        answered = Answered(texts, answers, [text.strip() for text in wanted])
        return figures_of(self.job.runtime, config.train.eval_metrics, config.evaluation.labels, answered)


def figures_of(
    runtime: Runtime, metrics: Sequence[str], labels: Sequence[str] | None, answered: Answered
) -> dict[str, float]:
    """Return the figures of `metrics`, computed on rank 0: code of others may tell each process something else, and
    what a run goes by must be one number. Every rank must call it and gets all of them."""
    told: dict[str, float] = {}
    if runtime.is_main:
        scores = score_answers(metrics, answered.answers, answered.references, labels)
        others, figures = foreign_scores(metrics, answered, 0, "train.eval_metrics")
        made = {name: value for each in [*scores, *others] for name, value in each.result(0).items()} | figures
        told = {name: value for name, value in made.items() if isinstance(value, float)}
    said = json.dumps(told).encode() if told else b""
    [length] = runtime.sum(len(said))
    mine = torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else torch.zeros(int(length))
    shared = runtime.sum_tensor(mine).to(torch.uint8)
    return dict(json.loads(bytes(shared.tolist()) or b"{}"))


def answering(
    job: Job[SupervisedConfig], tokenizer: PreTrainedTokenizerBase, validation: Rows, part: str | None = None
) -> Callable[[Any, Feed], Feed]:
    """Return what makes a model's feed let it answer validation rows, where `train.eval_metrics` asks for it.

    Raises ScaleupError where no row holds a prompt."""
    config = job.config
    if not config.train.eval_metrics:
        return lambda _, rows: rows
    asked = (question_of(row, job.plan.model.task) for row in validation[: config.train.eval_answers])
    questions = [each for each in asked if each is not None]
    if not questions:
        what = "needs prompts to answer, and no validation row holds one before what is learned"
        raise ScaleupError.of("train.eval_metrics", what, "give data.prompt and data.completion, or leave it out")
    generation: GenerationConfig = getattr(config, "generation", None) or GenerationConfig()

    def with_answers(model: Any, rows: Feed) -> Feed:
        return replace(rows, answered=AnswersInTraining(job, generation, tokenizer, questions, model, part).measure)

    return with_answers


def figures_of_responses(
    job: Job[PolicyConfig], held_out: Sequence[Prompt]
) -> Callable[[Sequence[str]], dict[str, float]] | None:
    """Return what computes the figures of `train.eval_metrics` of responses to the prompts of data.test; None where
    none are asked for. Raises ScaleupError for rows that do not say what a response should be, where a metric needs
    it."""
    config = job.config
    if not config.train.eval_metrics:
        return None
    wanted = [""] * len(held_out)
    if config.needs_references:
        sources = config.data.test or []
        wanted = [reference(row) for source in sources for row in read_examples(config.data, source, "test")]
    prompts = [prompt.text for prompt in held_out]

    def figures(responses: Sequence[str]) -> dict[str, float]:
        answered = Answered(prompts, [text.strip() for text in responses], wanted)
        return figures_of(job.runtime, config.train.eval_metrics, config.evaluation.labels, answered)

    return figures
