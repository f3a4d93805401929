"""A pipeline goes in; every mistake of every run comes out at once, before any starts.

What a run's inputs will be is not there yet. A model that is trained keeps the sizes and the tokens of the one that it
starts from: a stand-in for its folder holds what it will be, without weights, and whoever names it is planned on the
model it starts from, with the labels, layers and tokens that training gives it. What is pruned, quantized, exported or
generated is known when it is there: of whoever names it, all else is checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json, write_json
from scaleup.config.adapters import SelectiveAdapter
from scaleup.config.schema import ModelConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.describe import Described, Describer, describe_models
from scaleup.plan.extras import DataPlaneMissing
from scaleup.plan.facts import MicroBatch, ModelFacts, ModelRequest, RowsRequest
from scaleup.plan.machine import this_machine
from scaleup.plan.model_path import ADAPTER_FILE
from scaleup.plan.resolve import Sources, checked_rows, resolve
from scaleup.plan.stages import planner_of
from scaleup.studies.pipeline import Pipeline, PipelineRun, of_run
from scaleup.studies.shares import Place, here, share_problems

ONE_SCORE = ("LABEL_0",)
"""Is what Transformers calls the label of a head of one score."""


def _parallel_problems(pipeline: Pipeline) -> Iterator[Problem]:
    configs = [run.loaded.config for run in pipeline.runs.values()]
    is_on_cpu = all(config is None or config.parallel.device == "cpu" for config in configs)
    return share_problems(pipeline.num_parallel, is_on_cpu, this_machine())


def check(pipeline: Pipeline, names: Collection[str], place: Place | None = None) -> list[str]:
    """Returns notes on what could not be seen yet of the runs of these names, which will be made at a `place`; None:
    here, by the pipeline itself. Raises ScaleupError with every mistake of them and of the pipeline."""
    problems = [*pipeline.problems, *(_parallel_problems(pipeline) if place is None else ())]
    place = place or here(pipeline.num_parallel, "pipeline")
    with Describer() as describer, tempfile.TemporaryDirectory(prefix="scaleup-") as stand_ins:
        checker = Checker(pipeline, names, describer, Path(stand_ins), place)
        for run in (run for name, run in pipeline.runs.items() if name in names):
            problems += of_run(run.name, checker.problems_of(run))
    if problems:
        raise ScaleupError(problems)
    return checker.notes


@dataclass(frozen=True)
class Promise:
    """Stands for the model that a run will make: what is asked of the one it starts from, and what that is."""

    request: ModelRequest
    facts: ModelFacts
    folder: Path
    """Is the stand-in for its folder."""

    @property
    def is_adapter(self) -> bool:
        adapter = self.request.adapter
        is_new = adapter is not None and not isinstance(adapter, SelectiveAdapter)
        return is_new or self.facts.adapter is not None


@dataclass
class Checker:
    """Checks the runs of a pipeline, each after those that it needs."""

    pipeline: Pipeline
    names: Collection[str]
    describer: Describer
    stand_ins: Path
    """Is the folder of stand-ins."""
    place: Place
    notes: list[str] = field(default_factory=list)
    _promises: dict[str, Promise] = field(default_factory=dict)

    def problems_of(self, run: PipelineRun) -> list[Problem]:
        """Returns the mistakes of a run; what it makes is promised to those after it."""
        unmade = [each for each in run.inputs if each.run in self.names]
        unseen = sorted({each.run for each in unmade if each.run not in self._promises or not each.is_whole})
        stand_ins = {each.run: self._stand_in(each.run) for each in unmade}
        loaded = run.load({**run.folders, **stand_ins})
        loaded.problems.extend(self._input_problems(run))
        problems: list[Problem] = []
        sources = Sources(checked_rows, self._describe(run))
        try:
            placed, machine = self.place(loaded)
            resolve(placed, machine, check_run_folder=False, peaks=False, sources=sources)
        except DataPlaneMissing as missing:  # on a login node: the job's own check sees the rest
            self.notes.append(f"{run.name}: the model was not looked at: {missing}")
        except ScaleupError as error:
            hidden = [str(stand_ins[name]) for name in unseen]
            problems = [each for each in error.problems if not any(place in str(each) for place in hidden)]
        if unseen:
            self.notes.append(f"{run.name}: what {', '.join(unseen)} will make is not known: checked when it is there")
        return [self._as_named(problem) for problem in problems]

    def _input_problems(self, run: PipelineRun) -> Iterator[Problem]:
        """Yields inputs that other runs do not make."""
        for each in run.inputs:
            made, parent = self.pipeline.runs[each.run].folder, self.pipeline.runs[each.run].loaded.config
            if each.run not in self.names and not made.manifest_file.is_file():
                what = f"run {each.run} has not finished, and is not asked for"
                yield Problem(each.key, what, f"make it too: --from {each.run}")
            if parent is None or not each.is_whole:
                continue
            if each.is_rows:
                yield Problem(
                    each.key, f"{each.text} is a run's folder, and no rows", f"name a file in it: {each.text}/FILE"
                )
            elif not planner_of(parent).makes_model:
                what = f"{each.text} is a run of stage {parent.stage}, which makes no model"
                yield Problem(each.key, what, "name a run that does")

    def _stand_in(self, name: str) -> Path:
        """Returns the stand-in for a run's folder, whose path is no part of another's."""
        return self.stand_ins / name / "made"

    def _as_named(self, problem: Problem) -> Problem:
        """Returns a problem in which stand-ins are called what they stand for."""
        texts = [problem.where, problem.what, problem.remedy]
        for name, run in self.pipeline.runs.items():
            texts = [text.replace(str(self._stand_in(name)), str(run.folder.path)) for text in texts]
        return Problem(*texts)

    def _describe(self, run: PipelineRun) -> Any:
        def describe(
            models: Mapping[str, ModelConfig], micro_batch: MicroBatch | None, readers: Mapping[str, RowsRequest]
        ) -> Described:
            promised = {where: self._promise_at(run, where) for where in models}
            asked = {where: _as_promised(model, promised[where]) for where, model in models.items()}
            if (adapter := self._promise_at(run, "adapter")) is not None:
                asked["model"] = asked["model"].model_copy(update={"adapter": adapter.request.adapter})
            described = describe_models(asked, micro_batch, readers, self.describer.ask)
            facts = {where: _as_made(each, promised[where]) for where, each in described.facts.items()}
            self._promise(run, asked["model"], facts)
            return Described(facts, described.notes)

        return describe

    def _promise_at(self, run: PipelineRun, where: str) -> Promise | None:
        """Returns the promise of the run that the model at a config key is, if it is one."""
        keys = (where, f"{where}.path")
        return next((self._promises.get(each.run) for each in run.inputs if each.key in keys and each.is_whole), None)

    def _promise(self, run: PipelineRun, request: ModelConfig, facts: Mapping[str, ModelFacts]) -> None:
        planner, config = planner_of(run.config), run.config
        if not planner.keeps_shapes or not isinstance(request, ModelRequest):
            return
        promise = Promise(request, planner.complete(config, facts)["model"], self._stand_in(run.name))
        write_stand_in(promise)
        self._promises[run.name] = promise


def _as_promised(model: ModelConfig, promise: Promise | None) -> ModelConfig:
    """Returns what is asked of a model: of a promised one, of that which it starts from."""
    if promise is None or not isinstance(model, ModelRequest):
        return model
    source = promise.request
    is_scorer = source.task == "sequence_classification"
    return model.model_copy(
        update={
            "path": source.path,
            "task": source.task if is_scorer or model.task == "auto" else model.task,
            "tokenizer": model.tokenizer or source.tokenizer,
            "revision": source.revision,
            "trust_remote_code": source.trust_remote_code or model.trust_remote_code,
            "new_tokens": [*source.new_tokens, *model.new_tokens],
            "adapter": model.adapter or source.adapter,
            "layers": model.layers or source.layers,
            "new_labels": source.new_labels or model.new_labels,
            "problem": source.problem or model.problem,
        }
    )


def _as_made(facts: ModelFacts, promise: Promise | None) -> ModelFacts:
    """Returns the facts of a model as they will be: with the head that training gives it, as an adapter where it is
    one."""
    if promise is None:
        return facts
    update: dict[str, Any] = {"adapter": str(promise.folder)} if promise.is_adapter else {}
    if promise.facts.task == "sequence_classification":
        labels = promise.facts.classes or ONE_SCORE
        update |= {"labels": labels, "new_labels": (), "problem": promise.facts.problem}
    return facts.model_copy(update=update)


def write_stand_in(promise: Promise) -> None:
    """Writes what can be seen of a promised model's folder without loading it: an adapter's settings, or the
    model's."""
    folder, adapter, facts = promise.folder, promise.request.adapter, promise.facts
    folder.mkdir(parents=True)
    if not promise.is_adapter:
        own = Path(facts.location) / "config.json"
        settings = read_json(own) if own.is_file() else {"model_type": facts.model_type}
        write_json(folder / "config.json", settings)
        (folder / "model.safetensors").touch()
    elif adapter is None:
        shutil.copytree(str(facts.adapter), folder, dirs_exist_ok=True)
    else:
        kind = "PREFIX_TUNING" if adapter.type == "prefix" else adapter.type.upper()
        settings = {"peft_type": kind, "base_model_name_or_path": facts.location}
        settings |= {"use_dora": getattr(adapter, "use_dora", False), "trainable_token_indices": facts.new_token_ids}
        write_json(folder / ADAPTER_FILE, settings)
        (folder / "adapter_model.safetensors").touch()
