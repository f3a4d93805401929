"""A model goes in; one with fewer bits a weight comes out: quantized, written, read again, compared, and measured
before and after."""

from __future__ import annotations

import gc
from itertools import chain
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import folder_aside, folder_bytes, write_text
from scaleup.compress.probes import difference, drawn_probes, logits_on, row_probes
from scaleup.compress.quantize import chosen_matrices, load_quantized, read_quantized, write_quantized
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.quantize import QuantizeConfig
from scaleup.data.sources import read_examples
from scaleup.evaluation.evaluate import Evaluator
from scaleup.models.adapted import load_base
from scaleup.models.load import load_tokenizer
from scaleup.reports.lineage import with_lineage
from scaleup.reports.model_cards import quantize_card
from scaleup.train.job import Job

WEIGHTS = "*.safetensors"


def run(job: Job[QuantizeConfig]) -> None:
    config, runtime, facts = job.config, job.runtime, job.plan.model
    settings, device = config.quantize, runtime.device
    choice = None if settings.is_low_precision else chosen_matrices(config.model, settings)
    tokenizer = load_tokenizer(config.model, facts.location)
    rows = row_probes(config.data, settings.num_rows, tokenizer, facts)
    probes = [*drawn_probes(facts), *rows]
    metrics: dict[str, Any] = {"method": settings.method, "num_parameters": facts.num_parameters}
    metrics |= {"group_size": settings.group_size, "sequences": len(probes), "rows": len(rows)}
    if choice is not None:
        metrics |= {"matrices": len(choice.quantized), "left": len(choice.left)}

    runtime.progress.report("loading the model")
    model = load_base(config.model, facts, None, "no", device).to(device)
    true = logits_on(model, probes, device)
    metrics |= {f"{key}_before": value for key, value in _perplexity(job, model, tokenizer).items()}
    metrics |= {"bytes_before": (before := folder_bytes(Path(facts.location), WEIGHTS) or model.get_memory_footprint())}
    del model
    gc.collect()  # before the next one is loaded
    runtime.progress.report("quantizing")
    model = load_quantized(config, facts, choice, device)
    quantized = logits_on(model, probes, device)
    metrics["moved"] = difference(quantized, true)
    with folder_aside(job.folder.model) as aside:
        write_quantized(model, tokenizer, settings, aside)
        del model
        gc.collect()
        runtime.progress.report("reading it again")
        model, metrics["reloaded"] = read_quantized(config, facts, aside, probes, quantized, device)
        metrics |= _perplexity(job, model, tokenizer)
        metrics["bytes"] = folder_bytes(aside, WEIGHTS)
        metrics |= {
            "bits_before": 8 * before / facts.num_parameters,
            "bits": 8 * metrics["bytes"] / facts.num_parameters,
        }
        write_text(aside / "README.md", with_lineage(quantize_card(config, facts, metrics), job.folder))
    job.finish(metrics)


def _perplexity(job: Job[QuantizeConfig], model: Any, tokenizer: Any) -> dict[str, float]:
    """Return `perplexity` on data.test, as `scaleup evaluate` measures it; nothing if there are no rows."""
    config = job.config
    if not config.data.test:
        return {}
    evaluation = EvaluationConfig(split="test", metrics=["perplexity"], batch_size=config.quantize.batch_size)
    examples = list(chain.from_iterable(read_examples(config.data, source, "test") for source in config.data.test))
    evaluator = Evaluator(job.runtime, examples, config.data, evaluation, GenerationConfig(), job.parts)
    result = evaluator.evaluate(model, tokenizer, job.plan.model.task, "the model")
    return {"perplexity": result.metrics["perplexity"]}
