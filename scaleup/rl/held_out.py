"""A policy goes in; scores and figures of its responses to the held-out prompts come out, with the same draws each
time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.models.beside import unwrap
from scaleup.models.rollout import HELD_OUT, Responses, response_seeds
from scaleup.rl.drawing import maker_of, renew
from scaleup.rl.experience import samples_of
from scaleup.rl.generators import TransformersGenerator
from scaleup.rl.rewards.interface import Sample
from scaleup.rl.run import RL, RLState
from scaleup.train.fit import is_due
from scaleup.train.metrics import MetricsLog


def evaluate_if_due(training: RL, metrics: MetricsLog, state: RLState, tolerance: float) -> bool:
    """Evaluate where it is time to; return whether this evaluation is the best so far since training began."""
    rollouts, train = training.rollouts, training.train
    is_at_edge = state.step in (0, rollouts.num_rollouts)
    if not training.held_out or not (is_at_edge or is_due(train.eval_steps, state.step, rollouts.num_rollouts)):
        return False
    if state.evaluated == state.step:
        return False
    values = _evaluate(training, state, tolerance)
    state.evaluated = state.step
    metrics.log(state.step, **{f"eval/{name}": value for name, value in values.items()})
    chosen = train.metric_for_best_model
    if chosen not in values:
        what = f"{chosen!r} was not measured: there are {', '.join(values)}"
        raise ScaleupError.of("train.metric_for_best_model", what, "name one of them")
    if state.step == 0:
        return False
    return state.note_evaluation(values[chosen], train.early_stopping_threshold, train.goes_by_greater)


def _evaluate(training: RL, state: RLState, tolerance: float) -> dict[str, float]:
    """Return scores and figures of responses to the held-out prompts, drawn with the same seeds each time; some are
    kept as text."""
    renew(training, state, tolerance)
    training.runtime.progress.report("answering held-out prompts")
    world, count = training.runtime.world, len(training.held_out)
    filled = [*training.held_out, *[training.held_out[-1]] * (-count % world)]  # as many on each rank
    seeds = response_seeds(training.train.seed, HELD_OUT, len(filled))
    shows_kl = unwrap(training.model).has_reference or not isinstance(training.generator, TransformersGenerator)
    experience = maker_of(training, shows_kl).make(filled, seeds)
    scores, kl = experience.scores[:count], experience.log_ratio[:count].sum(dim=1)
    values = {
        "scores": float(scores.mean()),
        "scores_std": float(scores.std(unbiased=False)),
        "kl": float(kl.mean()),
        "length_mean": float(experience.lengths[:count].double().mean()),
    }
    if training.figures is None and not training.runtime.is_main:
        return values
    drawn = Responses(experience.tokens, experience.lengths, experience.finished)
    is_seq2seq = unwrap(training.model).is_seq2seq
    samples = samples_of(training.tokenizer, filled, drawn, training.sampling.eos_ids, is_seq2seq)[:count]
    if training.runtime.is_main:
        _keep(training, state.step, samples, scores.tolist())
    return values if training.figures is None else values | training.figures([each.response for each in samples])


def _keep(training: RL, step: int, samples: Sequence[Sample], scores: Sequence[float]) -> None:
    rows = [
        {"prompt": sample.prompt, "response": sample.response, "score": score}
        for sample, score in zip(samples, scores, strict=True)
    ]
    file = samples_file(training.run, step)
    file.parent.mkdir(exist_ok=True)
    write_json(file, rows[: training.rollouts.num_samples])


def samples_file(run: RunFolder, step: int) -> Path:
    return run.path / "samples" / f"rollout-{step:06d}.json"
