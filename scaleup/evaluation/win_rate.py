"""Answers of several models to the same prompts go in; how often those of each are better than the first one's comes
out, by a judge that reads both in both orders (Zheng et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scaleup.config.data import DataConfig
from scaleup.config.evaluation import PairwiseJudge
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.tokenization import Encoder
from scaleup.evaluation.judging import Judge, Judgements, Questions
from scaleup.evaluation.likelihood import prompt_of
from scaleup.evaluation.scores import Scores, ratio
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
    judge, prompts = load_judge(job, settings), [prompt_of(example) for example in examples]
    first, *others = answers
    scores = {first: [win_scores(Judgements(np.zeros((len(prompts), 2, 2))))]}
    for name in others:
        told = zip(prompts, answers[name], answers[first], strict=True)
        scores[name] = [win_scores(judge([questions(settings.template, *each) for each in told]))]
    return scores


def load_judge(job: Job[EvaluateConfig], settings: PairwiseJudge) -> Judge:
    """Load the model at `evaluation.judge.model`. It reads questions by its chat template, where it has one."""
    config, runtime, facts = job.config, job.runtime, job.plan.models["evaluation.judge.model"]
    runtime.progress.report("loading the judge")
    model = load_finished(settings.model, facts, config.quantization, config.mixed_precision, runtime.device)
    swap_token_head(model)
    tokenizer = load_tokenizer(settings.model, facts.tokenizer_at)
    as_chat, (one, other) = bool(tokenizer.chat_template), settings.options
    most = settings.max_length or min(MAX_LENGTH, facts.max_positions or MAX_LENGTH)
    return Judge(
        runtime,
        model,
        Encoder(tokenizer, facts.task, DataConfig(max_length=most, too_long="drop")),
        language_collator(model, tokenizer, facts.task),
        (one, other) if as_chat else (f" {one}", f" {other}"),
        as_chat,
        config.evaluation.batch_size,
        job.parts / "judge",
    )


def questions(template: str, prompt: str | Chat, response: str, other: str) -> Questions:
    """Return what is asked about two responses, with either of them first."""
    text = as_transcript(prompt) if isinstance(prompt, Chat) else prompt
    made = [
        Template(template).render({"prompt": text, "first": first, "second": second})
        for first, second in ((response, other), (other, response))
    ]
    return made[0], made[1]


def win_scores(judged: Judgements) -> Scores:
    """Return the win rate, `judge`: a response wins that is the likelier one in both orders, and loses where the other
    one is; else it is a tie, which counts half. `judge_by_order` is the share of rows in which the order decides: the
    judge's position bias. Rows that are too long for it are left out and counted."""
    signs = np.sign(judged.by_order)
    known = ~np.isnan(signs[:, 0])
    wins = (1 + (signs[:, 0] == signs[:, 1]) * signs[:, 0]) / 2
    sums = np.stack([np.where(known, wins, 0.0), signs.prod(axis=1) < 0, known], axis=1).astype(float)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"judge": ratio(sums[:, 0], sums[:, 2]), "judge_by_order": ratio(sums[:, 1], sums[:, 2])}

    left_out = {"judge_left_out": int((~known).sum())} if not known.all() else {}
    return Scores(sums, figures, {"judge": wins, "judge_probability": judged.probability}, left_out)
