"""This module holds the planner's interface to a stage: one object in `plan/stages/NAME.py` answers every question
about it.

A config comes in, with the machine, the data that was checked or the facts of models; problems, and parts of the plan,
go out. The methods stand in the order in which `plan/resolve.py` calls them. The defaults here fit a stage with one
group that holds one model, and trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

from scaleup.config.data import RowFormat
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.run import RunConfig
from scaleup.config.schema import GenerationConfig, ModelConfig
from scaleup.errors import Problem
from scaleup.plan.compat import NOTHING, Tested
from scaleup.plan.compute import Rate
from scaleup.plan.extras import extra_problems
from scaleup.plan.facts import InContext, MicroBatch, ModelFacts, ModelRequest, RowsRequest
from scaleup.plan.gathering import gathering_problems
from scaleup.plan.groups import patience_problems
from scaleup.plan.kernels import attention_problems
from scaleup.plan.machine import Machine
from scaleup.plan.memory import inference_memory
from scaleup.plan.metrics import evaluation_problems
from scaleup.plan.model_path import model_path_problems, quantization_of
from scaleup.plan.rules import (
    arithmetic_problems,
    few_shot_problems,
    generation_problems,
    parallel_problems,
    position_problems,
    precision_problems,
    row_problems,
    runs_dir_problems,
    split_problems,
    tracker_problems,
)
from scaleup.plan.scorers import measured_by, scorer_model_problems
from scaleup.plan.types import BatchPlan, ComputePlan, MemoryPlan, RolloutPlan
from scaleup.records.check import DataCheck, class_problems
from scaleup.records.format_rules import row_format, with_formats
from scaleup.records.labels import Targets

C = TypeVar("C", bound=RunConfig)
Rows = Literal["completions", "prompts"]
"""Says what rows of a split must hold: a prompt with its completion, or a prompt alone."""
Facts = Mapping[str, ModelFacts]
"""Maps the config key of every model of the run -> its facts: `model`, `teacher`, `reward.model`, ..."""


def targets_of(facts: Facts) -> list[Targets]:
    """Returns what rows may be labelled with, of each classifier among a run's models."""
    return list(dict.fromkeys(each.targets for each in facts.values() if each.reads_labels))


def example_splits(config: RunConfig) -> dict[str, Rows]:
    """Returns the split that examples before prompts come from, where there are any."""
    settings = config.data.few_shot
    return {"train": "completions"} if settings is not None and settings.count else {}


def with_examples(rows: RowsRequest | None, asked: InContext) -> RowsRequest | None:
    """Returns what is asked of rows, and whether prompts have room behind their examples; nothing is learned of
    these."""
    if rows is None or rows.data.few_shot is None or not rows.data.few_shot.count:
        return rows
    splits = {split: needs for split, needs in rows.splits.items() if split != "train"}
    return rows.model_copy(update={"splits": splits, "in_context": asked})


class StagePlanner(Generic[C]):
    """Answers what the planner asks about a stage."""

    shows = "training"
    """Names the table of `reports/results.py` that is printed in the end."""
    tested: Tested = NOTHING
    """Tells which combinations of strategy, adapter, quantization and precision this project's tests train."""
    trains = False
    """Tells whether the stage trains `model`, so that it can learn new tokens."""
    takes_classifiers = False
    """Tells whether `model` may be a sequence classifier."""
    before_reads: Literal["data", "own"] = "data"
    """Tells by which chat template the model that a finished run is compared with reads: see EvaluateConfig."""
    takes_few_shot = False
    """Tells whether examples may stand before prompts (`data.few_shot`)."""
    adds_router_loss = False
    """Tells whether the loss of a mixture of experts has the part that balances its router's load."""
    has_plain_loss = False
    """Tells whether the loss is the one that a plain Transformers model computes of labels."""
    writes_text = True
    """Tells whether a finished run of it is a model that answers prompts."""
    makes_model = True
    """Tells whether a finished run of it is a model that other runs may name."""
    keeps_shapes = False
    """Tells whether that model has the sizes and the tokens that are planned for `model`."""

    # What the config alone says.

    def splits(self, config: C) -> dict[str, Rows]:
        """Returns the data splits that the stage reads, and what their rows must hold."""
        raise NotImplementedError  # the one question that no stage can leave open

    def max_rows(self, config: C) -> int | None:
        """Returns how many rows of a split are read at most; None: all."""
        return None

    def readers(self, config: C) -> dict[str, RowsRequest]:
        """Returns the rows that each model's tokenizer is to be tried on, by config key."""
        rows = self.rows(config)
        return {} if rows is None else {"model": rows}

    def rows(self, config: C) -> RowsRequest | None:
        """Returns the rows that the stage reads, for `readers`; None where they are plain text or have a class, and are
        no tokens yet."""
        splits = {split: needs for split, needs in self.splits(config).items() if getattr(config.data, split)}
        forms = [row_format(config.data, source) for split in splits for source in getattr(config.data, split)]
        tokens = {split: needs for split, needs in self.tokenized(config).items() if getattr(config.data, split)}
        if all(form.text is not None for form in forms):
            splits = {}
        if not splits and not tokens:
            return None
        data = with_formats(config.data)
        return RowsRequest(data=data, splits=splits, tokens=tokens, max_rows=self.max_rows(config))

    def tokenized(self, config: C) -> dict[str, Rows]:
        """Returns the splits whose rows the stage keeps as tokens, and what these are made of."""
        return {}

    def model_paths(self, config: C) -> dict[str, ModelConfig]:
        """Returns the models that must be there, by config key."""
        return {"model": config.model}

    def generates(self, config: C) -> bool:
        """Returns whether the stage generates while it trains, from weights that may be sharded."""
        return False

    def measured(self, config: C) -> EvaluationConfig | None:
        """Returns what an evaluation of the run measures, if it has one."""
        evaluation: EvaluationConfig | None = getattr(config, "evaluation", None)
        return evaluation

    def answers(self, config: C) -> GenerationConfig | None:
        """Returns how the stage itself lets a model answer, if it does."""
        return None

    def config_problems(self, config: C, machine: Machine) -> list[Problem]:
        """Returns every problem that the config itself tells of, so that a user sees all mistakes at once."""
        needs_weights = not machine.is_described
        return [
            *(
                problem
                for where, model in self.model_paths(config).items()
                for problem in model_path_problems(model, where, needs_weights, self.trains and where == "model")
            ),
            *attention_problems(config, machine, self._all_models(config)),
            *arithmetic_problems(config, machine),
            *parallel_problems(config, machine),
            *patience_problems(config),
            *gathering_problems(config.parallel, self.generates(config), config.stage),
            *self.problems(config, machine),
            *split_problems(config, self.splits(config)),
            *few_shot_problems(config, self.row_formats(config), self.takes_few_shot),
            *self.evaluation_problems(config, machine),
            *tracker_problems(config),
            *runs_dir_problems(config),
            *extra_problems(config, machine),
        ]

    def _all_models(self, config: C) -> dict[str, ModelConfig]:
        """Returns every model that a run loads, by config key: those that score too."""
        rewards = {f"{each.key}.model": each.source.model for each in config.reward_sources if each.source.model}
        measured = self.measured(config)
        scorers = {key: scorer.model for key, scorer in (measured_by(measured) if measured else {}).items()}
        return self.model_paths(config) | rewards | scorers

    def problems(self, config: C, machine: Machine) -> Iterator[Problem]:
        """Yields what cannot work, as far as the config itself tells."""
        yield from self.quantized_problems(config)

    def evaluation_problems(self, config: C, machine: Machine) -> Iterator[Problem]:
        """Yields what cannot be measured of the run."""
        if (evaluation := self.measured(config)) is not None:
            needs = {needs for split, needs in self.splits(config).items() if split != "supervised"}
            reads_prompts = needs == {"prompts"}
            yield from evaluation_problems(config, evaluation, reads_prompts, machine)
        if (generation := getattr(config, "generation", None)) is not None:
            yield from generation_problems(generation, "generation")

    def quantized_problems(self, config: C) -> Iterator[Problem]:
        """Yields a refusal of a model whose folder holds quantized weights: most stages need the plain ones."""
        if (method := quantization_of(config.model.path)) is not None:
            what = f"{config.model.path} is quantized already ({method}): stage {config.stage} needs the weights it was"
            yield Problem("model.path", f"{what} made of", "name the unquantized model")

    def logged(self, config: C) -> frozenset[str]:
        """Returns the metrics that the run logs by its steps, and that say how good it is: names, or patterns as of
        `fnmatch`."""
        return frozenset()

    # What the rows say.

    def data_problems(self, config: C, machine: Machine, data: DataCheck) -> Iterator[Problem]:
        """Yields what cannot work with as many rows as were counted."""
        yield from ()

    def trains_as(self, config: C) -> RunConfig:
        """Returns the config by which the run trains: its own, or another stage's where one is part of this one."""
        return config

    def learner_key(self, key: str) -> str:
        """Returns the key by which the config says what `key` says in the one by which the run trains."""
        return key

    def batch(self, config: C, data: DataCheck) -> BatchPlan | None:
        """Returns how large an optimizer step is; None for a stage that does not learn from rows as they are."""
        return None

    def batch_problems(self, config: C, batch: BatchPlan) -> Iterator[Problem]:
        """Yields what cannot work over as many steps as there will be."""
        yield from ()

    # What the models' files say.

    def models(self, config: C) -> dict[str, ModelRequest]:
        """Returns the models whose facts are needed, by config key."""
        quantization = getattr(config, "quantization", None)
        return {"model": ModelRequest(**config.model.model_dump(), quantization=quantization)}

    def told_by_rows(self, config: C, models: dict[str, ModelRequest], data: DataCheck) -> dict[str, ModelRequest]:
        """Returns the models with what the rows tell of them: which labels a new classifier has."""
        return models

    def micro_batch(self, config: C) -> MicroBatch | None:
        """Returns what a rank trains on at a time, whose memory is traced; None where nothing is trained on rows."""
        return None

    def all_facts_problems(self, config: C, facts: ModelFacts, where: str) -> list[Problem]:
        """Returns what only the files of the model at the config key `where` can tell, whosever model it is."""
        measured = self.measured(config)
        if measured is not None and where in measured_by(measured):
            return scorer_model_problems(measured, facts, where)
        return list(self.facts_problems(config, facts, where))

    def facts_problems(self, config: C, facts: ModelFacts, where: str) -> Iterator[Problem]:
        """Yields what the files of the model at the config key `where` say against the run."""
        yield from precision_problems(config, facts)
        yield from self.length_problems(config, facts, where)
        forms = self.row_formats(config)
        yield from row_problems(facts, where, forms, config.data.chat_template is not None)
        yield from self.task_problems(config, facts, where, forms)

    def length_problems(self, config: C, facts: ModelFacts, where: str) -> Iterator[Problem]:
        """Yields rows and answers that are longer than the model has positions for."""
        yield from position_problems(config.data.max_length, self.answers(config), facts, where)

    def task_problems(self, config: C, facts: ModelFacts, where: str, forms: list[RowFormat]) -> Iterator[Problem]:
        """Yields a model of another kind than the stage works on; `forms` are the formats of all rows."""
        if facts.task == "sequence_classification" and where == "model" and not self.takes_classifiers:
            what = f"is a sequence classifier ({facts.architecture}): it scores texts and writes none"
            remedy = f"stage {config.stage} needs a language model; evaluate takes this one"
            yield Problem(f"{where}.path", what, remedy)

    def label_problems(self, config: C, facts: Facts, data: DataCheck) -> Iterator[Problem]:
        """Yields labels of rows that a classifier which reads them does not have."""
        for targets in targets_of(facts):
            yield from class_problems(data, targets)

    def model_problems(self, config: C, facts: Facts) -> Iterator[Problem]:
        """Yields what the files of several models say against one another."""
        yield from ()

    def complete(self, config: C, facts: Facts) -> Facts:
        """Returns the facts with what follows from those of other models."""
        return facts

    # What becomes of it: parts of the plan.

    def trained(self, config: C, facts: Facts) -> ModelFacts:
        """Returns the facts of what the first group's engine wraps."""
        return facts["model"]

    def memory(self, config: C, facts: Facts, strategy: str) -> MemoryPlan:
        """Returns the bytes that a rank holds under a strategy."""
        return inference_memory(facts["model"], strategy, getattr(config, "quantization", None))

    def rollouts(self, config: C, data: DataCheck) -> RolloutPlan | None:
        """Returns how rollouts divide into optimizer steps; None for a stage without them."""
        return None

    def compute(self, config: C, facts: Facts, batch: BatchPlan, rate: Rate) -> ComputePlan | None:
        """Returns the arithmetic of a training run in floating-point operations."""
        return None

    def notes(self, config: C, facts: Facts, batch: BatchPlan | None, data: DataCheck) -> list[str]:
        """Returns what the user should know although it is no mistake."""
        return []

    def untested_notes(self, config: C, strategy: str) -> list[str]:
        """Returns a note where no test of this project trains what the config combines under a strategy."""
        return []

    # What `scaleup verify` trains in the place of a run.

    def twin(self, config: C) -> dict[str, Any] | None:
        """Returns what a run on tiny models has otherwise, by config key, beside what all have; None: there is none."""
        return None

    # What becomes of a finished run.

    def before(self, config: C) -> ModelConfig | None:
        """Returns the model that a finished run's is compared with; None where there is none."""
        return config.model

    def generation(self, config: C) -> GenerationConfig:
        """Returns how the model of a finished run answers."""
        return getattr(config, "generation", None) or GenerationConfig()

    def row_formats(self, config: C) -> list[RowFormat]:
        """Returns the formats of all rows that are read."""
        sources = [source for split in self.splits(config) for source in getattr(config.data, split) or []]
        return [row_format(config.data, source) for source in sources]
