"""A config goes in; the equalities of what its twin reads and leaves come out: the tokens that are learned, and the
saved and the exported model, beside what plain Transformers makes of them, in a process of the data plane."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scaleup.artifacts.metrics_log import logged_values
from scaleup.children import asked
from scaleup.config.stages.base import TrainingConfig
from scaleup.plan.stages import planner_of
from scaleup.studies.verify.equalities import IN_FLOAT32, TOLERANCE, Equality, NotDue, TwinRun

COMMAND = [sys.executable, "-m", "scaleup.describe.plain"]
COUNTED = "tokens are equal or they are not: tests/unit/describe/test_oracle.py, test_plain.py"
MERGED = "float32 sums in another order, of logits of random weights: tests/unit/compress/test_export.py"


def result_equalities(config: TrainingConfig, reference: TwinRun) -> Iterator[Equality]:
    """Yields the equalities of what a run reads and leaves, of a stage whose loss is plain Transformers' own."""
    why = "" if planner_of(config).has_plain_loss else f"stage {config.stage} has a loss of its own"
    why = why or ("several rows share a sequence" if config.data.packing else "")
    runs = reference, reference
    what = "tokens learned = those of a plain tokenizer, in tokens that differ"
    yield Equality("labels", what, runs, 0.0, COUNTED, _of("labels"), why)
    what = "greedy answers alone = beside longer prompts, in tokens that differ"
    yield Equality("padding", what, runs, 0.0, COUNTED, _of("padding"), why)
    quantized = "" if config.quantization is None else "plain Transformers loads the base as it was before"
    what = "loss of the trained model = of the saved one in plain Transformers"
    yield Equality("saved", what, runs, TOLERANCE, IN_FLOAT32, _saved, why or quantized)
    exported = TwinRun("exported", exports=reference)
    alone = "" if config.adapter else "there is no adapter to merge, and `saved` is about the rest"
    what = "base and adapter = the exported model, in its logits"
    not_due = why or alone or quantized
    check = "export.tolerance"  # the export looks itself, too
    yield Equality("exported", what, (reference, exported), TOLERANCE, MERGED, _exported, not_due, refused_by=check)


def _of(check: str) -> Callable[[Path, Path], float]:
    return lambda one, _: _value(one, check)


def _saved(one: Path, _: Path) -> float:
    logged = logged_values(one / "metrics.jsonl", "eval_loss")
    if not logged:
        raise NotDue("the twin holds no rows out")
    return abs(_value(one, "loss") - logged[max(logged)])


def _exported(one: Path, other: Path) -> float:
    return _value(one, "merged", other)


def _value(run: Path, check: str, exported: Path | None = None) -> float:
    """Returns what a check came to. Raises NotDue where it cannot be made, and ValueError where the plain libraries do
    not take what the run left."""
    told = _told(run, exported)[check]
    if "why_not" in told:
        raise NotDue(told["why_not"])
    if "failed" in told:
        raise ValueError(told["failed"])
    return float(told["value"])


@cache
def _told(run: Path, exported: Path | None) -> dict[str, Any]:
    """Returns what all checks of a run came to: one process makes them."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    question = {"config": config, "run": str(run), "exported": exported and str(exported)}
    done, stderr = asked(COMMAND, json.dumps(question))
    if done.returncode or not done.stdout.strip():
        raise ValueError(f"plain Transformers cannot be asked: {stderr.cause(done.returncode)}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told
