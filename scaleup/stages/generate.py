"""Text from a model, for prompts of the config or those of data.test."""

from __future__ import annotations

from itertools import chain

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import GenerateConfig
from scaleup.data.sources import read_prompts
from scaleup.data.tokenization import Encoder
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.evaluation.generation import generate_answers
from scaleup.evaluation.report import finish
from scaleup.models.adapted import load_finished
from scaleup.models.load import load_tokenizer
from scaleup.plan.types import Plan


def run(config: GenerateConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    prompts: list[str | list[dict[str, str]]] = list(config.generation.prompts or [])
    if not prompts:
        sources = config.data.test or []
        prompts = list(chain.from_iterable(read_prompts(config.data, source, "test") for source in sources))

    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_location or plan.model.location)
    model = load_finished(config.model, plan.model, config.quantization, config.mixed_precision, runtime.device)
    ids = Encoder(tokenizer, plan.model.task, config.data).prompt_ids(prompts)
    seed_everything(runtime.rank)
    answers = generate_answers(
        runtime,
        model,
        tokenizer,
        ids,
        config.generation,
        config.evaluation.batch_size,
        folder.path / ".parts",
        "generating",
    )

    if runtime.is_main:
        pairs = [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)]
        write_json(folder.path / "generations.json", pairs)
        finish(folder, config.stage, config.name, {"prompts": len(prompts)}, None)
    runtime.barrier()
