"""Pairs of responses go in; which of each a model takes for the better comes out, in pairs.jsonl, as the stages reward
and dpo read it (Bai et al. 2022, section 4.1)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from scaleup.artifacts.files import write_text
from scaleup.config.stages.judge import JudgementConfig, JudgementSettings
from scaleup.data.preferences import PreferenceEncoder
from scaleup.data.sources import made_examples
from scaleup.data.tokenization import Encoder
from scaleup.errors import ScaleupError
from scaleup.evaluation.judging import Judge, Judgements
from scaleup.models.adapted import load_finished
from scaleup.models.load import load_tokenizer
from scaleup.records.chats import as_written
from scaleup.records.constitution import Principle, read_constitution
from scaleup.records.format_rules import row_format
from scaleup.records.preferences import Preference, is_open
from scaleup.train.job import Job
from scaleup.train.reading import language_collator
from scaleup.train.token_head import swap_token_head

FOR_QUESTIONS = {"too_long": "drop", "completion_only_loss": True, "train_on": "assistant"}
"""Says how a question is read: one that is cut would not show both responses."""


def run(job: Job[JudgementConfig]) -> None:
    config, plan, runtime = job.config, job.plan, job.runtime
    constitution = read_constitution(config.judge.constitution, "judge")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    encoder = Encoder(tokenizer, plan.model.task, config.data.model_copy(update=FOR_QUESTIONS))
    reader, sources = PreferenceEncoder(encoder), config.data.test or []
    pairs = [pair for source in sources for pair in made_examples(config.data, source, "test", reader)]
    is_known = not any(is_open(row_format(config.data, source)) for source in sources)

    runtime.progress.report("loading the model")
    model = load_finished(config.model, plan.model, config.quantization, config.mixed_precision, runtime.device)
    swap_token_head(model)
    collate = language_collator(model, tokenizer, plan.model.task)
    settings = config.judge
    judge = Judge(
        runtime, model, encoder, collate, constitution.options, settings.as_chat, settings.batch_size, job.parts
    )
    principles = [constitution.drawn(settings.seed, number) for number in range(len(pairs))]
    judged = judge([constitution.questions(*each) for each in zip(pairs, principles, strict=True)])
    if np.isnan(judged.log_odds).all():
        what = f"{config.data.max_length} is less than any question with both responses has"
        raise ScaleupError.of("data.max_length", what, "raise it")

    left_out = Counter(reader.left_out)
    rows = list(preferred_rows(pairs, principles, judged, settings, left_out))
    if runtime.is_main:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(job.folder.path / "pairs.jsonl", text)
        shutil.rmtree(job.parts, ignore_errors=True)
        reasons = {f"left_out_{reason}": count for reason, count in sorted(left_out.items())}
        job.finish({"pairs": len(rows), **reasons, **judged.figures(is_known)})
    runtime.barrier()


def preferred_rows(
    pairs: Sequence[Preference],
    principles: Sequence[Principle],
    judged: Judgements,
    settings: JudgementSettings,
    left_out: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Yields a row for each pair, with the judge's probability for what is chosen; counts those left out."""
    decided = zip(pairs, principles, judged.probability, judged.order_decides, strict=True)
    for number, (pair, principle, probability, order_decides) in enumerate(decided):
        if np.isnan(probability):
            left_out["too_long"] += 1
        elif settings.drop_order_decided and order_decides:
            left_out["order_decided"] += 1
        elif probability == 0.5 and settings.labels == "hard":
            left_out["undecided"] += 1
        else:
            is_first = probability > 0.5
            if settings.labels == "sampled":
                is_first = Random(f"{settings.seed} {number} label").random() < probability
            chosen, rejected = (pair.chosen, pair.rejected) if is_first else (pair.rejected, pair.chosen)
            yield {
                "id": number,
                **as_written(pair.prompt),
                "chosen": chosen,
                "rejected": rejected,
                "probability": float(probability if is_first else 1 - probability),
                "order_decides": bool(order_decides),
                "principle": principle.name,
            }
