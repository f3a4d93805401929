"""A card's models and its rows go in; what each model costs and how good it is comes out, one after another."""

from __future__ import annotations

import gc
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import scaleup
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.card import CardConfig
from scaleup.data.collate import Batch
from scaleup.data.dataset import collator_for
from scaleup.data.loader import eval_batches
from scaleup.data.sources import read_examples
from scaleup.data.tokenization import Encoder
from scaleup.describe.shell import shell_of
from scaleup.errors import ScaleupError
from scaleup.evaluation.evaluate import Evaluator, evaluate_model
from scaleup.evaluation.quality import RowQuality, row_quality, summarize
from scaleup.evaluation.speed import Request, faster, measure_apart
from scaleup.models.load import auto_class, load_model, load_tokenizer, num_ids_of, pad_token_id
from scaleup.plan.facts import ModelFacts
from scaleup.records.examples import Example
from scaleup.train.job import Job


@dataclass(frozen=True)
class CardRows:
    """Held-out rows, as the base's tokenizer has them: variants are shown the same tokens."""

    examples: Sequence[Example]
    batches: Sequence[Batch]
    num_ids: int
    """Counts the ids that the tokenizer gives."""


@dataclass(frozen=True)
class Measured:
    costs: dict[str, Any]
    """As `speed.measure` gives it."""
    rows: RowQuality
    task: dict[str, Any]
    """Scores of answers, where the config asks for any."""

    def beside(self, base: Measured, num_samples: int) -> dict[str, Any]:
        return self.costs | {"quality": summarize(self.rows, base.rows, num_samples), "task": self.task}


def card_rows(job: Job[CardConfig]) -> CardRows:
    """Read and tokenize the rows of data.test. Raises ScaleupError there if no row is left."""
    config, plan = job.config, job.plan
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    examples = [one for source in config.data.test or [] for one in read_examples(config.data, source, "test")]
    examples = examples[: config.card.max_rows]
    rows = [row for row in Encoder(tokenizer, plan.model.task, config.data)(examples) if row is not None]
    if not rows:
        what = f"no row fits max_length {config.data.max_length} with a label left"
        raise ScaleupError.of("data.test", what, "raise data.max_length")
    shell = shell_of(config.model).model  # which needs no weights to shift labels
    shift_right = getattr(shell, "prepare_decoder_input_ids_from_labels", None)
    collate = collator_for(plan.model.task, pad_token_id(tokenizer), shift_right)
    batches = list(eval_batches(rows, collate, config.evaluation.batch_size, 0, 1))
    return CardRows(examples, batches, num_ids_of(tokenizer))


def measure_costs(
    job: Job[CardConfig], models: Mapping[str, tuple[ModelConfig, ModelFacts]]
) -> dict[str, dict[str, Any]]:
    """Measure each model in processes of its own, before anything is loaded here: round after round, the best of
    each."""
    config, runtime = job.config, job.runtime
    best: dict[str, dict[str, Any]] = {}
    for number in range(config.card.rounds):
        for name, (model, facts) in models.items():
            runtime.progress.report(f"speed of {name}", number + 1, config.card.rounds)
            request = Request(
                folder=facts.location,
                task=facts.task,
                prompt_tokens=config.card.prompt_tokens,
                new_tokens=config.card.new_tokens,
                repeats=config.card.repeats,
                compile=config.card.compile,
                threads=job.plan.groups[0].threads_per_process,
                device=runtime.device.type,
                trust_remote_code=model.trust_remote_code,
            )
            costs = measure_apart(request)
            best[name] = faster(best[name], costs) if name in best else costs
    return best


def measure_variant(
    job: Job[CardConfig], name: str, model: ModelConfig, facts: ModelFacts, rows: CardRows, base: Any
) -> tuple[RowQuality, dict[str, Any]]:
    """Return the quality of a model beside `base`, the card's model, and the scores of its answers."""
    device = job.runtime.device
    job.runtime.progress.report(f"quality of {name}")
    variant = base if model is job.config.model else as_stored(model, facts, device)
    quality = row_quality(variant, base, rows.batches, device, rows.num_ids)
    del variant
    gc.collect()  # before the next one is loaded
    return quality, _task(job, name, model, facts, rows)


def as_stored(model: ModelConfig, facts: ModelFacts, device: torch.device) -> Any:
    """Load a model in the type of its files, as a user of the folder does; from a GGUF file the dequantized weights."""
    file = Path(facts.location)
    if file.suffix == ".gguf":
        from transformers import GgufConfig

        options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
        loaded = auto_class(facts.task).from_pretrained(file.parent, dtype=torch.float32, **options)
        return loaded.to(device).eval()
    return load_model(model, facts, dtype="auto").to(device).eval()


def _task(job: Job[CardConfig], name: str, model: ModelConfig, facts: ModelFacts, rows: CardRows) -> dict[str, Any]:
    """Return the metrics that compare answers."""
    config = job.config
    metrics = [metric for metric in config.evaluation.metrics if metric != "perplexity"]
    if not metrics:
        return {}
    if facts.location.endswith(".gguf"):
        return {}  # llama.cpp's own answers were compared when it was exported
    evaluation = config.evaluation.model_copy(update={"metrics": metrics})
    evaluator = Evaluator(job.runtime, rows.examples, config.data, evaluation, config.generation, job.parts)
    scores = evaluate_model(evaluator, model, facts, name).metrics
    return {key: value for key, value in scores.items() if key != "rows"}


def this_machine() -> dict[str, str]:
    """Return the machine, library versions and date that the figures hold for."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "torchao"))
    return {
        "machine": f"{device}, {torch.get_num_threads()} threads, {platform.system()}",
        "versions": f"scaleup {scaleup.__version__}, {libraries}, Python {platform.python_version()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    """Return the processor's name: from /proc/cpuinfo on Linux; elsewhere `platform` knows the architecture alone."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
