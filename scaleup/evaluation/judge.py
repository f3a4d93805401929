"""Prompts with two responses each go in; which of them a language model takes for the better one comes out, by the
probabilities of two options, in both orders (Zheng et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scaleup.config.data import DataConfig
from scaleup.config.evaluation import PairwiseJudge
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.tokenization import IGNORE, Encoder, Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.likelihood import prompt_of, row_losses, with_answer
from scaleup.evaluation.scores import Scores, at_places, ratio
from scaleup.models.adapted import load_finished
from scaleup.models.load import load_tokenizer
from scaleup.records.chats import Chat, as_transcript
from scaleup.records.examples import Opening, PromptCompletion
from scaleup.records.template import Template
from scaleup.train.job import Job
from scaleup.train.reading import language_collator
from scaleup.train.token_head import swap_token_head

MAX_LENGTH = 1024
"""Counts the tokens that a judge reads where its config does not say."""


def measure_wins(
    job: Job[EvaluateConfig],
    examples: Sequence[PromptCompletion | Chat | Opening],
    answers: Mapping[str, Sequence[str]],
) -> dict[str, list[Scores]]:
    """Return `win_scores` of each column's answers against the first column's, whose own are ties. Every rank must call
    it and gets the whole result."""
    settings = job.config.evaluation.judge
    if "judge" not in job.config.evaluation.metrics or not answers:
        return {}
    assert settings is not None, "the plan refuses judge without a model"
    judge, prompts = Judge(job, settings, "evaluation.judge.model"), [prompt_of(example) for example in examples]
    first, *others = answers
    scores = {first: [win_scores(np.full((len(prompts), 2), 0.5))]}
    for name in others:
        job.runtime.progress.report(f"judging {name}")
        scores[name] = [win_scores(judge.preferences(prompts, answers[name], answers[first]))]
    return scores


class Judge:
    """Compares responses. Every rank must make the same calls and gets the whole results."""

    def __init__(self, job: Job[Any], settings: PairwiseJudge, key: str) -> None:
        """Load the model at a config key of the job."""
        config, facts = job.config, job.plan.facts_of(key)
        self._runtime: Runtime = job.runtime
        self._settings, self._batch_size = settings, config.evaluation.batch_size
        job.runtime.progress.report("loading the judge")
        self._model = load_finished(
            settings.model, facts, config.quantization, config.mixed_precision, job.runtime.device
        ).eval()
        swap_token_head(self._model)
        tokenizer = load_tokenizer(settings.model, facts.tokenizer_at)
        self._specials = tokenizer.all_special_ids
        self._is_chat = bool(tokenizer.chat_template)
        most = settings.max_length or min(MAX_LENGTH, facts.max_positions or MAX_LENGTH)
        self._encoder = Encoder(tokenizer, facts.task, DataConfig(max_length=most))
        self._collate = language_collator(self._model, tokenizer, facts.task)

    def preferences(self, prompts: Sequence[str | Chat], responses: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """Return the probability (N, 2) that a response is better than the other one, of both options together, where
        it is shown first, and where it is shown second; NaN of pairs that are too long for the judge."""
        template, shown = Template(self._settings.template), []
        for prompt, one, other in zip(prompts, responses, others, strict=True):
            text = as_transcript(prompt) if isinstance(prompt, Chat) else prompt
            for first, second in ((one, other), (other, one)):
                asked = template.render({"prompt": text, "first": first, "second": second})
                shown += [self._answered(asked, option) for option in self._settings.options]
        rows = [row and self._without_end(row) for row in self._encoder(shown)]
        whole = [place for place in range(0, len(rows), 4) if all(row is not None for row in rows[place : place + 4])]
        read = [row for place in whole for row in rows[place : place + 4] if row is not None]
        if not read:
            return np.full((len(prompts), 2), np.nan)
        losses = row_losses(self._runtime, self._model, read, self._collate, self._batch_size).reshape(-1, 2, 2)
        is_first = 1 / (1 + np.exp(np.clip(losses[:, :, 0] - losses[:, :, 1], -500, 500)))
        chosen = np.stack([is_first[:, 0], 1 - is_first[:, 1]], axis=1)
        return at_places(chosen, [place // 4 for place in whole], len(prompts))

    def _without_end(self, row: Tokens) -> Tokens:
        """Return a row in which the option alone counts: a judge may go on behind it, and gives its reasons."""
        labels = row.labels.copy()
        ends = np.flatnonzero(np.isin(labels, self._specials))
        labels[ends[0] if len(ends) else len(labels) :] = IGNORE
        return replace(row, labels=labels)

    def _answered(self, asked: str, option: str) -> PromptCompletion | Chat:
        if self._is_chat:
            return with_answer(Opening(Chat([{"role": "user", "content": asked}])), option)
        return PromptCompletion(asked, option if asked[-1:].isspace() else f" {option}")


def win_scores(preferences: np.ndarray) -> Scores:
    """Return the win rate, `judge`, from the probabilities (N, 2) of `Judge.preferences`: a response wins that is the
    likelier one in both orders, and loses where the other one is; else it is a tie, which counts half. `judge_by_order`
    is the share of rows in which the order decides: the judge's position bias."""
    known = ~np.isnan(preferences[:, 0])
    outcomes = np.where(known, np.sign(preferences - 0.5).sum(axis=1), 0.0)
    wins = np.where(np.abs(outcomes) == 2, (outcomes / 2 + 1) / 2, 0.5)
    by_order = known & (np.sign(preferences - 0.5).prod(axis=1) < 0)
    sums = np.stack([wins * known, by_order, known], axis=1).astype(float)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"judge": ratio(sums[:, 0], sums[:, 2]), "judge_by_order": ratio(sums[:, 1], sums[:, 2])}

    told = np.where(known, wins, np.nan)
    left_out = {"judge_left_out": int((~known).sum())} if not known.all() else {}
    return Scores(sums, figures, {"judge": told, "judge_probability": preferences.mean(axis=1)}, left_out)
