"""This module trains a student on its own answers (on-policy distillation; Agarwal et al. 2024): at each step it
answers prompts, and learns its teacher's distribution at each token of these answers, in the loop of every stage.

An answer follows from its prompt, its seed and the student's weights alone, and its seed from the step and the row: so
any number of processes learns from the same answers, and so does a run that goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np

from scaleup.config.stages.distill import DistillConfig
from scaleup.data.collate import Batch, Collator
from scaleup.data.loader import Split
from scaleup.data.prompts import Prompt, PromptOrder, read_prompts
from scaleup.data.tokenization import FILLER, IGNORE, Encoder, Tokens
from scaleup.distill.language import Distillation
from scaleup.distill.module import STUDENT
from scaleup.distill.train import distillation_models, shared_ids
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import base_of, unwrap
from scaleup.models.load import load_tokenizer
from scaleup.models.rollout import HELD_OUT, Sampling, respond, response_seeds, sampling_of
from scaleup.plan.arithmetic import epochs_to_rows, rows_to_steps
from scaleup.train.finish import TrainedModel
from scaleup.train.fit import Feed
from scaleup.train.job import Job
from scaleup.train.reading import language_collator
from scaleup.train.supervised import train_model


def train_on_policy(job: Job[DistillConfig]) -> TrainedModel:
    """Trains the student on its own answers to the prompts of the training rows.

    Raises ScaleupError as reading, loading and fitting do, and Stopped after a signal."""
    config, plan, runtime = job.config, job.plan, job.runtime
    assert plan.batch is not None
    runtime.progress.report("reading prompts")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    encoder = Encoder(tokenizer, plan.model.task, config.data)
    train, held_out = (read_prompts(config.data, split, encoder, runtime.progress) for split in ("train", "validation"))
    weights = [source.weight for source in config.data.train or []]

    runtime.progress.report("loading the model and its teacher")
    num_ids = shared_ids(tokenizer, plan.model, plan.models["teacher"])
    student, teacher = distillation_models(config, plan.model, plan.models["teacher"], runtime.device)
    generation = config.distill.generation
    sampling = sampling_of(
        student,
        tokenizer,
        generation.max_new_tokens,
        generation.temperature,
        top_p=generation.top_p,
        suppressed=() if num_ids is None else tuple(range(num_ids, plan.model.vocab_size)),
    )
    answers = Answers(
        runtime,
        sampling,
        language_collator(student, tokenizer, plan.model.task),
        PromptOrder(train, weights, config.train.seed, config.data.shuffle),
        list(chain.from_iterable(held_out)),
        Split(plan.batch.micro_batch, plan.batch.accumulation, runtime.rank, runtime.world),
        config,
    )
    model = OnPolicyDistillation(student, teacher, config.distill, num_ids)
    num_steps = config.train.max_steps or _steps_of_epochs(config, sum(map(len, train)), plan.batch.global_batch)
    done = train_model(job, model, num_steps, on_policy_loss, lambda wrapped, _: answers.feed(wrapped))
    return TrainedModel(done.wrapped, tokenizer, done.state, left_out={}, part=STUDENT)


def _steps_of_epochs(config: DistillConfig, num_prompts: int, global_batch: int) -> int:
    assert config.train.num_train_epochs is not None, "the plan refuses anything else"
    return rows_to_steps(epochs_to_rows(config.train.num_train_epochs, num_prompts), global_batch)


class OnPolicyDistillation(Distillation):
    """Distils a language model into another one, which also answers."""

    def forward(self, role: Literal["generate", "learn"], **inputs: Any) -> Any:  # type: ignore[override]
        """Runs one of two forward passes; both go through here, because engines gather weights around it.

        generate -> token ids of the student, by Transformers' own `generate`
        learn    -> the loss summed over the labelled positions, a float32 scalar"""
        if role == "generate":
            return base_of(self.student).generate(**inputs)
        return super().forward(**inputs)


def on_policy_loss(model: Any, batch: Batch) -> Any:
    """Returns the objective of the loop: the loss summed over the tokens of a batch's answers, a float32 scalar."""
    return model("learn", labels=batch.labels, places=batch.places, **batch.inputs)


@dataclass
class Answers:
    """Makes batches of what a student answers, as it is at that step."""

    runtime: Runtime
    sampling: Sampling
    collate: Collator
    prompts: PromptOrder
    held_out: Sequence[Prompt]
    split: Split
    config: DistillConfig
    model: Any = None
    """Is an OnPolicyDistillation under the run's strategy."""
    lengths: list[int] = field(default_factory=list)
    """Counts the tokens of each of this rank's answers drawn last."""
    finished: list[bool] = field(default_factory=list)
    """Tells whether they end with an EOS."""

    def feed(self, wrapped: Any) -> Feed:
        """Returns what a student learns from, once an engine has wrapped it."""
        self.model = wrapped
        return Feed(self, self.validation if self.held_out else None, self.measured)

    def batches(self, step: int) -> list[Batch]:
        """Returns the micro-batches of this rank: its rows of the step's global batch, answered by the student before
        the step."""
        split, size = self.split, self.split.global_batch
        seeds = response_seeds(self.config.train.seed, step, size)
        firsts = [(micro * split.world + split.rank) * split.micro_batch for micro in range(split.accumulation)]
        mine = [row for first in firsts for row in range(first, first + split.micro_batch)]
        answered = self._answered([self.prompts[step * size + row] for row in mine], [seeds[row] for row in mine])
        parts = range(0, len(answered), split.micro_batch)
        return [self.collate(answered[start : start + split.micro_batch]) for start in parts]

    def validation(self) -> Iterator[Batch]:
        """Yields the held-out prompts, answered with the same seeds each time; of each, one rank's row counts. All
        ranks get equally many batches."""
        count, world = len(self.held_out), self.runtime.world
        seeds = response_seeds(self.config.train.seed, HELD_OUT, count)
        mine = range(self.runtime.rank, count + -count % world, world)
        rows = [min(row, count - 1) for row in mine]
        answered = self._answered([self.held_out[row] for row in rows], [seeds[row] for row in rows])
        counted = [row if place < count else FILLER for place, row in zip(mine, answered, strict=True)]
        size = self.config.train.per_device_eval_batch_size
        for start in range(0, len(counted), size):
            yield self.collate(counted[start : start + size])

    def measured(self) -> dict[str, float]:
        """Returns the mean length of the last step's answers, in tokens, and the share that was cut off, under TRL's
        names."""
        tokens, finished, count = self.runtime.sum(sum(self.lengths), sum(self.finished), len(self.lengths))
        return {"completions/mean_length": tokens / count, "completions/clipped_ratio": 1 - finished / count}

    def _answered(self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> list[Tokens]:
        """Returns rows of this rank's prompts and what the student, as it is now, answers to them, each with a seed of
        its own. Every rank must call it, with as many prompts."""
        runtime, model, was_training = self.runtime, self.model, self.model.training
        size, rows = self.config.train.per_device_eval_batch_size, list[Tokens]()
        self.lengths, self.finished = [], []
        model.eval()
        runtime.progress.enter_phase("generating")
        with runtime.generating(model, unwrap(model).student) as together:
            for start in range(0, len(prompts), size):
                part = slice(start, start + size)
                ids = [prompt.ids for prompt in prompts[part]]
                drawn = respond(model, ids, seeds[part], self.sampling, runtime.device, together)
                lengths = drawn.lengths.tolist()
                rows += [self._row(*row) for row in zip(ids, drawn.tokens.tolist(), lengths, strict=True)]
                self.lengths += lengths
                self.finished += drawn.finished.tolist()
                runtime.progress.enter_phase("generating")
        model.train(was_training)
        return rows

    @property
    def _task(self) -> str:
        return "seq2seq_lm" if unwrap(self.model).config.is_encoder_decoder else "causal_lm"

    def _row(self, prompt: Sequence[int], tokens: Sequence[int], length: int) -> Tokens:
        """Returns a prompt and its answer, of so many of the tokens, with labels on the answer, whatever ids it has."""
        ids, labels = np.asarray(prompt, np.int32), np.asarray(tokens[:length], np.int32)
        if self._task == "seq2seq_lm":
            return Tokens(ids, labels)
        return Tokens(np.append(ids, labels), np.append(np.full(len(ids), IGNORE, np.int32), labels))
