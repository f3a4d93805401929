"""Generated answers go in; what other models make of them comes out: how probable a classifier finds it that they are
toxic, how a reward model scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scaleup.config.schema import ScorerConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.likelihood import prompt_of
from scaleup.evaluation.scores import Scores, ratio
from scaleup.models.scoring import Scored, Scorer, load_scorer
from scaleup.plan.facts import ModelFacts
from scaleup.records.chats import Chat
from scaleup.records.examples import Opening, PromptCompletion
from scaleup.train.job import Job


def measure_scores(
    job: Job[EvaluateConfig],
    examples: Sequence[PromptCompletion | Chat | Opening],
    answers: Mapping[str, Sequence[str]],
) -> dict[str, list[Scores]]:
    """Return, for each column, what the config's classifier of toxicity and its reward model make of the answers. Every
    rank must call it and gets the whole result.

    The number of `toxicity` is that of Hugging Face's measurement `toxicity` (the library `evaluate`): softmax over all
    labels of the classifier, the toxic one's share, or its sigmoid where a text may have several, of the text alone.
    Theirs reads the beginning of a text that is too long for the classifier, this its end. An empty answer is scored
    like any other. `reward` is the score of prompt and answer, normalised as the reward run's own."""
    evaluation, facts = job.config.evaluation, job.plan.models
    prompts = [prompt_of(example) for example in examples]
    scores: dict[str, list[Scores]] = {name: [] for name in answers}
    for kind, settings in (("toxicity", evaluation.toxicity_scorer), ("reward", evaluation.reward_scorer)):
        if settings is None:
            continue
        read = {name: _read(kind, prompts, texts) for name, texts in answers.items()}
        for name, values in _scored(job.runtime, kind, settings, facts[f"evaluation.{kind}_model"], read).items():
            scores[name].append(spread(kind, values))
    return scores


def spread(name: str, values: np.ndarray) -> Scores:
    """Return mean, (population) standard deviation and maximum of values (N). The maximum has no interval: it
    is that of these rows."""

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        mean, square = ratio(sums[:, 0], sums[:, 2]), ratio(sums[:, 1], sums[:, 2])
        return {name: mean, f"{name}_std": np.sqrt(np.maximum(square - mean**2, 0.0))}

    sums = np.stack([values, values**2, np.ones(len(values))], axis=1)
    return Scores(sums, figures, {name: values}, {f"{name}_max": float(values.max())})


def _read(kind: str, prompts: Sequence[str | Chat], answers: Sequence[str]) -> list[Scored]:
    """Return prompts and responses as a scorer reads them: toxicity is that of the answer alone."""
    if kind == "toxicity":
        return [("", text) for text in answers]
    return [
        (prompt, [{"role": "assistant", "content": text}]) if isinstance(prompt, Chat) else (prompt, text)
        for prompt, text in zip(prompts, answers, strict=True)
    ]


def _scored(
    runtime: Runtime, kind: str, settings: ScorerConfig, facts: ModelFacts, read: Mapping[str, Sequence[Scored]]
) -> dict[str, np.ndarray]:
    runtime.progress.report(f"loading the model of {kind}")
    scorer = load_scorer(settings, facts, runtime.device)
    scores = {}
    for name, pairs in read.items():
        runtime.progress.report(f"{kind} of {name}")
        scores[name] = _shared(runtime, scorer, pairs)
    return scores


def _shared(runtime: Runtime, scorer: Scorer, pairs: Sequence[Scored]) -> np.ndarray:
    """Score all texts, shared out over the ranks; every rank gets all scores."""
    mine = slice(runtime.rank, None, runtime.world)
    scores = np.zeros(len(pairs))
    scores[mine] = scorer.score(pairs[mine])
    return np.asarray(runtime.sum(*scores))
