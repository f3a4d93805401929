"""A model's weights in fewer bits: quantized, written, read again, compared, and measured before and after."""

from __future__ import annotations

import gc
from itertools import chain
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import folder_aside, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.card import folder_bytes, quantize_card
from scaleup.compress.probes import difference, drawn_probes, logits_on, row_probes
from scaleup.compress.quantize import chosen_matrices, load_quantized, read_quantized, write_quantized
from scaleup.config.schema import EvaluationConfig
from scaleup.config.stages import EvaluateConfig, QuantizeConfig
from scaleup.data.sources import read_examples
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.evaluate import measure
from scaleup.evaluation.report import finish
from scaleup.models.adapted import load_base
from scaleup.models.load import load_tokenizer
from scaleup.plan.compression import LOW_PRECISION
from scaleup.plan.types import Plan

WEIGHTS = "*.safetensors"


def run(config: QuantizeConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    facts, settings, device = plan.model, config.quantize, runtime.device
    choice = None if settings.method in LOW_PRECISION else chosen_matrices(config.model, settings)
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
    metrics |= {f"{key}_before": value for key, value in _measured(config, plan, runtime, model, tokenizer, folder)}
    metrics |= {"bytes_before": (before := folder_bytes(Path(facts.location), WEIGHTS) or model.get_memory_footprint())}
    del model
    gc.collect()  # before the next one is loaded
    runtime.progress.report("quantizing")
    model = load_quantized(config, facts, choice, device)
    found = logits_on(model, probes, device)
    metrics["moved"] = difference(found, true)
    with folder_aside(folder.model) as aside:
        write_quantized(model, tokenizer, settings, aside)
        del model
        gc.collect()
        runtime.progress.report("reading it again")
        model, metrics["reloaded"] = read_quantized(config, facts, aside, probes, found, device)
        metrics |= dict(_measured(config, plan, runtime, model, tokenizer, folder))
        metrics["bytes"] = folder_bytes(aside, WEIGHTS)
        metrics |= {
            "bits_before": 8 * before / facts.num_parameters,
            "bits": 8 * metrics["bytes"] / facts.num_parameters,
        }
        write_text(aside / "README.md", quantize_card(config, facts, metrics))
    finish(folder, config.stage, config.name, metrics, None)


def _measured(
    config: QuantizeConfig, plan: Plan, runtime: Runtime, model: Any, tokenizer: Any, folder: RunFolder
) -> list[tuple[str, float]]:
    """Perplexity on data.test, as `scaleup evaluate` measures it; nothing where there are no rows."""
    if not config.data.test:
        return []
    evaluation = EvaluationConfig(split="test", metrics=["perplexity"], batch_size=config.quantize.batch_size)
    asked = EvaluateConfig(
        stage="evaluate", name=config.name, model=config.model, data=config.data, evaluation=evaluation
    )
    examples = list(chain.from_iterable(read_examples(config.data, source, "test") for source in config.data.test))
    result = measure(asked, runtime, model, tokenizer, plan.model.task, examples, folder.path / ".parts", "the model")
    return [("perplexity", result.metrics["perplexity"])]
