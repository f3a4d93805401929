"""A loaded model and tasks of lm-evaluation-harness go in; the harness's own figures and samples come out. Ranks share
out the harness's requests, and rank 0 has the results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import read_json, write_json
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.fields import is_place
from scaleup.config.schema import MixedPrecision
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.models.load import first_line
from scaleup.plan.benchmarks import KEY, task_files
from scaleup.train.job import Job

DTYPES: dict[MixedPrecision, str | None] = {"no": None, "fp16": "float16", "bf16": "bfloat16"}
NORMAL = 1.96
"""Times a standard error is half of a 95 % interval, where the sampling distribution is normal."""


@dataclass(frozen=True)
class Benchmarks:
    """Measures models on the same tasks, with the same settings. Every rank must make the same calls."""

    runtime: Runtime
    settings: EvaluationConfig
    mixed_precision: MixedPrecision
    parts: Path
    """The folder in which ranks leave their answers for one another."""
    samples: Path
    """The folder for what the harness tells of each document: COLUMN/TASK.jsonl."""
    manager: Any
    """The harness's TaskManager."""
    specs: list[str]
    """Names and files, as the manager takes them."""

    def measure(self, model: Any, tokenizer: PreTrainedTokenizerBase, task: str, column: str) -> dict[str, Any]:
        """Return figures by `TASK/METRIC` on rank 0, nothing on the others, and write rank 0's samples.

        Raises ScaleupError where a chat template is asked for, and the tokenizer has none."""
        from lm_eval import simple_evaluate

        runtime, settings = self.runtime, self.settings
        if settings.apply_chat_template and not tokenizer.chat_template:
            what = f"the tokenizer of {column} has no chat template"
            raise ScaleupError.of("evaluation.apply_chat_template", what, "leave it out, or name another tokenizer")
        runtime.progress.report(f"tasks of {column}")
        asked = _shared(runtime, self.parts)(
            pretrained=model,
            backend="seq2seq" if task == "seq2seq_lm" else "causal",
            tokenizer=tokenizer,
            batch_size=settings.batch_size,
            mixed_precision_dtype=DTYPES[self.mixed_precision],
        )
        results = simple_evaluate(
            asked,
            tasks=self.specs,
            num_fewshot=settings.num_fewshot,
            limit=settings.max_samples,
            bootstrap_iters=settings.bootstrap_samples if runtime.is_main else 0,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template,
            task_manager=self.manager,
            confirm_run_unsafe_code=settings.trust_remote_code,
        )
        if not runtime.is_main:
            return {}
        for name, samples in results["samples"].items():
            _write_samples(self.samples, column, name, samples)
        return _figures(results["results"])


def _shared(runtime: Runtime, parts: Path) -> Any:
    """Return the harness's class of a model of Transformers, of which each rank answers some of the requests and gets
    all answers.

    The harness shares out documents instead, which changes the examples that are drawn before each: what it then tells
    depends on the number of processes."""
    from lm_eval.models.huggingface import HFLM

    def over_ranks(answer: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def answer_shared(self: Any, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            mine = range(runtime.rank, len(requests), runtime.world)
            answers = answer(self, [requests[number] for number in mine], disable_tqdm=True) if mine else []
            parts.mkdir(parents=True, exist_ok=True)
            write_json(parts / f"{runtime.rank}.json", answers)
            runtime.barrier()
            told = [read_json(parts / f"{rank}.json") for rank in range(runtime.world)]
            runtime.barrier()  # the next call writes there again
            return [told[number % runtime.world][number // runtime.world] for number in range(len(requests))]

        return answer_shared

    kinds = ("loglikelihood", "loglikelihood_rolling", "generate_until")
    return type("SharedHFLM", (HFLM,), {kind: over_ranks(getattr(HFLM, kind)) for kind in kinds})


def load_benchmarks(job: Job[EvaluateConfig]) -> Benchmarks | None:
    """Return what measures `evaluation.tasks`, after each task was loaded once; None if there are none.

    Raises ScaleupError for a task that the harness does not know, whose data cannot be had, that runs code which is not
    trusted, or reads images."""
    config, runtime = job.config, job.runtime
    settings = config.evaluation
    if not settings.tasks:
        return None
    runtime.progress.report("reading tasks")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    places = [place for place in settings.tasks if is_place(place)]
    files = [str(file) for place in places for file in task_files(place)]
    names = [name for name in settings.tasks if not is_place(name)]
    # A group in a file names tasks beside it, or the harness's own, of which an index takes ten seconds.
    groups = [file for file in files if _is_group(file)]
    manager = TaskManager(
        include_path=[str(Path(file).parent) for file in groups] or None, include_defaults=bool(names or groups)
    )
    for spec in [*names, *files]:
        check_task(manager, spec, settings.trust_remote_code)
    try:
        manager.load([*names, *files])
    except ValueError as error:  # a task that two of them hold
        raise ScaleupError.of(KEY, first_line(error), "name it once") from error
    samples = job.folder.path / "samples"
    return Benchmarks(
        runtime, settings, config.mixed_precision, job.parts / "requests", samples, manager, [*names, *files]
    )


def _is_group(file: str) -> bool:
    from lm_eval.tasks._yaml_loader import load_yaml

    return "group" in load_yaml(file, resolve_func=False)


def check_task(manager: Any, spec: str, trusts_code: bool) -> None:
    """Load a task, a group or a tag with its documents. Raises ScaleupError for what cannot be measured."""
    if not is_place(spec) and spec not in manager.task_index:
        raise ScaleupError.of(KEY, f"lm_eval knows no task, group or tag {spec!r}", "see lm_eval ls tasks")
    try:
        tasks: Mapping[str, Any] = manager.load([spec])["tasks"]
        empty = [name for name, task in tasks.items() if not len(task.eval_docs)]
    except Exception as error:  # a hub that cannot be reached, a file that is not there, a task's own code
        what = f"{spec} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise ScaleupError.of(KEY, what, "make its data available here, or name another task") from error
    if empty:
        raise ScaleupError.of(KEY, f"{empty[0]} has no documents", "name another task")
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not trusts_code:
            what = f"{name} runs what the model writes"
            raise ScaleupError.of(KEY, what, "say evaluation.trust_remote_code: true, in a container")
        if getattr(task, "MULTIMODAL", False):
            raise ScaleupError.of(KEY, f"{name} shows images, and language models read texts", "leave it out")


def _figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the harness's figures of tasks and groups: `METRIC,FILTER` becomes `TASK/METRIC`, with the filter where it
    is a named one."""
    figures: dict[str, Any] = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = f"{task}/{metric}" + (f",{filter_name}" if filter_name != "none" else "")
            figures[name] = float(value)
            error = values.get(f"{metric}_stderr,{filter_name}")
            if isinstance(error, int | float):
                figures[f"{name}_stderr"] = float(error)
                figures[f"{name}_interval"] = [value - NORMAL * error, value + NORMAL * error]
    return figures


def _write_samples(folder: Path, column: str, task: str, samples: list[dict[str, Any]]) -> None:
    """Write what the harness tells of each document as its own command line does."""
    from lm_eval.loggers import EvaluationTracker

    place = folder / column / f"{task}.jsonl"
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    samples = sorted(samples, key=lambda sample: (filters.index(sample["filter"]), sample["doc_id"]))  # not by rank
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = column
    tracker.date_id = "now"
    written = place.with_name(f"samples_{task}_{tracker.date_id}.jsonl")
    written.unlink(missing_ok=True)  # of a run that was killed here: the tracker appends
    tracker.save_results_samples(task, samples)
    written.replace(place)
