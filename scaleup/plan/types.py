"""This module holds the plan: everything a launch decides, resolved once, written to `plan.json` and checked by every
worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from scaleup.artifacts.files import read_json, write_json
from scaleup.errors import ScaleupError
from scaleup.plan.facts import ModelFacts


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BatchPlan(_Frozen):
    """Splits a batch: micro_batch x accumulation x processes = global_batch, in `unit`."""

    unit: Literal["rows", "sequences", "micro-batches"] = "rows"
    """Names what the sizes count. Sequences are packed; micro-batches hold as many rows as `tokens` allows."""
    tokens: int | None = None
    """Counts the tokens that a micro-batch may hold at most, with its padding."""
    micro_batch: int
    accumulation: int
    global_batch: int
    num_steps: int | None
    """Counts the optimizer steps of the run; None where only reading the data will tell."""
    num_train_rows: int | None


class RolloutPlan(_Frozen):
    """Splits a rollout, which is sampled, then trained on in `passes` x `num_mini_batches` optimizer steps. Sizes are
    in rows, a prompt with its response each, over all processes unless stated otherwise."""

    num_rollouts: int
    rows: int
    """Counts the rows of a rollout."""
    num_generations: int = 1
    """Counts the responses to each prompt."""
    passes: int
    num_mini_batches: int
    mini_batch: int
    """Counts the rows of an optimizer step."""
    rank_mini_batch: int
    """Counts the rows of an optimizer step on each process."""
    micro_batch: int
    """Counts the rows of a forward pass on a process; the last micro-batch of a mini-batch may have fewer."""
    num_steps: int
    """Counts the optimizer steps of the run."""
    num_prompts: int | None
    """Counts the rows of data.train; None where they are not counted."""


class BridgePlan(_Frozen):
    """Holds where the policy listens for a group that serves it."""

    address: str | None
    """Is the address where the policy listens; None: the first node's, as it is found at each start."""
    port: int | None
    """Is the port there; None: a free one at each start. What holds, with a secret, is in the group's file in the run
    folder."""


class GeneratorPlan(_Frozen):
    """Holds what an engine that draws responses is started with."""

    python: str
    """Is the Python of an environment with vLLM."""
    dtype: str
    max_model_len: int
    """Counts the tokens of a prompt and its response, at most."""
    max_num_seqs: int
    kv_cache_gib: int
    gpu_memory_utilization: float
    max_lora_rank: int | None
    """Is the highest rank of the adapters that it takes; None where it takes none."""


class GroupPlan(_Frozen):
    """Describes one `accelerate launch` job: a process group of its own; or an engine that draws for the first one."""

    name: str
    generator: GeneratorPlan | None = None
    """Says how it is started where it is such an engine, whose matrices are cut over `num_processes`."""
    serves: bool = False
    """Tells whether it works for the first group, whose end is the run's. It has one node."""
    max_restarts: int = 0
    """Tells how often a group that serves is started again by itself, while the first one waits."""
    timeout_seconds: int = 1800
    """A collective that waits longer ends the group."""
    heartbeat_timeout_seconds: float = 120
    """A worker without a sign of life for so long hangs."""
    progress_timeout_seconds: float = 1620
    """A group none of whose ranks gets further for so long hangs; a group that serves is not watched for it."""
    first_device: int = 0
    """Numbers its first GPU on a node: groups have GPUs of their own, one after another."""
    num_processes: int
    num_nodes: int
    first_node: int = 0
    """Numbers its first node among the run's, which are counted through all groups."""
    device: Literal["cpu", "cuda"]
    backend: Literal["gloo", "nccl"]
    strategy: Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
    why: str
    is_chosen: bool = False
    """Tells whether the plan chose the strategy, because the config says auto."""
    distributed_type: Literal["NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP"]
    """Is what Accelerate must report in every worker."""
    engine: Literal["none", "DistributedDataParallel", "DeepSpeedEngine", "FSDPModule"]
    """Names the class that must wrap the model in every worker."""
    zero_stage: int | None = None
    deepspeed: dict[str, Any] | None = None
    """Holds DeepSpeed's complete settings."""
    gathers_for_generation: bool = False
    """Tells whether sharded weights are gathered once a rollout, in place of layer by layer for every token."""
    generation: str | None = None
    """Says which of the two, and why; None where sharded weights generate nothing."""
    mixed_precision: Literal["no", "bf16", "fp16"]
    threads_per_process: int
    main_address: str | None
    """Is the address of its first node; None: what that node finds for itself at each start."""
    main_port: int | None
    """Is the port of its first node where processes meet; None: a free one at each start."""
    interface: str | None = None
    """Names the network interface that its processes use between nodes."""

    def is_on(self, node_rank: int) -> bool:
        return self.first_node <= node_rank < self.first_node + self.num_nodes


class MemoryPlan(_Frozen):
    """Holds the bytes of a rank at the end of a backward pass, and the most at any moment of a step."""

    strategy: str
    weights: int
    gradients: int
    optimizer: int
    """Counts the moments, and DeepSpeed's float32 copy of the weights."""
    reference: int = 0
    """Counts a frozen copy of the model, that a policy is compared with."""
    buffers: int = 0
    """Counts what the engine communicates with: buckets, and weights gathered from other ranks."""
    gathered: int = 0
    """Counts the weights that a rank gathers for a rollout, and what it communicates with beside them; the buffers of
    training are not there then."""
    host: int = 0
    """Counts what is offloaded: in main memory beside the device's. On a CPU both are the same memory."""
    activations: int | None = None
    """Counts the activations of one micro-batch, and what lives for a moment in the backward pass; None where it could
    not be traced."""
    logits: int | None = None
    """Counts what the head and its loss add to the activations."""
    step: int = 0
    """Counts gradients and temporaries during the optimizer's step, when activations are gone."""
    peak: int | None = None
    """Counts the most on the device at any moment of a step; less than the sum where the moments differ."""

    @property
    def total(self) -> int:
        """Returns the bytes on the device."""
        return self.weights + self.reference + self.gradients + self.optimizer + max(self.buffers, self.gathered)


class LoadingPlan(_Frozen):
    """Holds the bytes of main memory that a group takes while its models are loaded, beside the libraries'."""

    group: str
    kept: int
    """Counts what a rank keeps there once all is loaded."""
    rank: int
    """Counts the most that a rank has there: what it keeps, and the parameter that is read."""
    node: int
    """Counts that of all ranks on a node."""


class ComputePlan(_Frozen):
    """Holds the arithmetic of a training run, in floating-point operations."""

    flops_per_token: int
    tokens: int | None
    """Counts the tokens of all steps, if every row were as long as it may be; None where the number of steps is not
    known."""
    total_flops: int | None
    teraflops: float | None
    """Is the peak rate of one device as the user states it, in 10^12 floating-point operations a second."""
    utilisation: float
    hours: float | None


EARLIER_FIELDS = {
    "baseline": "baseline",
    "teacher": "teacher",
    "reward": "reward.model",
    "toxicity": "evaluation.toxicity_model",
}
"""Maps the fields of plans that were written before `Plan.models` -> the model's config key."""


class Plan(_Frozen):
    stage: str
    name: str
    run_folder: str
    groups: list[GroupPlan]
    model: ModelFacts
    models: dict[str, ModelFacts] = {}
    """Holds the run's other models by config key: `teacher`, `baseline`, `reward.model`, `variants.NAME`, ..."""
    batch: BatchPlan | None = None
    rollouts: RolloutPlan | None = None
    bridges: dict[str, BridgePlan] = {}
    """Maps the name of each group that serves -> where the policy meets it."""
    memory: list[MemoryPlan]
    serving_memory: dict[str, MemoryPlan] = {}
    """Maps the name of each group that serves -> the memory of a rank of it."""
    loading: list[LoadingPlan] = []
    """Holds what loading takes on the host, by group."""
    device_memory: int | None = None
    """Counts the bytes of memory that a rank has, where they are known."""
    fitting: list[str] | None = None
    """Names the strategies whose peak fits in that beside a margin; None if the memory of a rank is unknown."""
    checkpoint_copy: int | None = None
    """Counts the bytes of main memory that a node needs for a copy of a checkpoint, which is written in the background
    where they are free; None: the training waits for each checkpoint, or there is none."""
    compute: ComputePlan | None = None
    notes: list[str]
    """Tells what the user should know although it is no mistake, e.g. how often a mixture repeats a small source."""

    def facts_of(self, key: str) -> ModelFacts:
        """Returns the facts of the model at a config key."""
        return self.model if key == "model" else self.models[key]

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, values: Any) -> Any:
        """Reads the plan of a run that began when there was one reward group at most, or when each second model had a
        field of its own."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for key, earlier in {"bridges": "bridge", "serving_memory": "reward_memory"}.items():
            if (of_reward := values.pop(earlier, None)) is not None:
                values[key] = {"reward": of_reward}
        if "models" in values or "baseline" not in values:
            return values
        models = {where: facts for key, where in EARLIER_FIELDS.items() if (facts := values.pop(key, None)) is not None}
        variants = values.pop("variants", {})
        return {**values, "models": {**models, **{f"variants.{name}": facts for name, facts in variants.items()}}}

    @property
    def facts(self) -> dict[str, ModelFacts]:
        """Returns the facts of every model of the run, by config key."""
        return {"model": self.model, **self.models}

    @property
    def num_nodes(self) -> int:
        return max(group.first_node + group.num_nodes for group in self.groups)

    def group(self, name: str) -> GroupPlan:
        return next(group for group in self.groups if group.name == name)

    @property
    def remarks(self) -> list[str]:
        """Returns what a user should read before the run starts: the notes, and the plan's own choices."""
        return [f"strategy {group.strategy}: {group.why}" for group in self.groups if group.is_chosen] + self.notes

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Returns a run's plan. Raises OSError where there is none, ScaleupError where what is there is no plan."""
        try:
            return cls.model_validate(read_json(path))
        except ValueError as error:
            what = f"cannot be read: {' '.join(str(error).split())[:300]}"
            raise ScaleupError.of(str(path), what, "start the run again with --resume, which writes it anew") from error
