"""This module holds the section of the job that runs a run, and what it requests from a scheduler. Nothing here changes
what is trained."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field

from scaleup.config.fields import Count, Int, PathText, Section, Text, Written, absolute

UNITS = (86_400, 3_600, 60, 1)
"""Holds the seconds of a day, an hour, a minute and a second."""
DAYS = re.compile(r"(\d+)-(\d{1,2})(?::(\d{1,2}))?(?::(\d{1,2}))?")
HOURS = re.compile(r"(\d+):(\d{1,2}):(\d{1,2})")
MINUTES = re.compile(r"(\d+)(?::(\d{1,2}))?")
EXAMPLES = 'write e.g. "1-12:00:00", "12:30:00" or "90" for minutes'


def seconds_of(time: str) -> int:
    """Returns the seconds of a time as Slurm writes it: D-HH, D-HH:MM, D-HH:MM:SS, HH:MM:SS, MM:SS or minutes alone.

    Raises ValueError for anything else, and for a time of zero."""
    if match := DAYS.fullmatch(time):
        parts = match.groups(default="0")
    elif match := HOURS.fullmatch(time):
        parts = ("0", *match.groups())
    elif match := MINUTES.fullmatch(time):
        parts = ("0", "0", *match.groups(default="0"))
    else:
        raise ValueError(f"is no time of a job: {EXAMPLES}")
    seconds = sum(int(part) * unit for part, unit in zip(parts, UNITS, strict=True))
    if not seconds:
        raise ValueError(f"is no time at all: {EXAMPLES}")
    return seconds


def _quoted_time(value: Any) -> Any:
    if isinstance(value, int | float):
        raise ValueError(f"is a number, as YAML also reads a bare 12:30:00: put the time in quotes, {EXAMPLES}")
    return value


def _valid_time(value: str) -> str:
    seconds_of(value)
    return value


def _number_as_text(value: Any) -> Any:
    """Turns a number into text: `OMP_NUM_THREADS: 4` is what people write."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _no_null(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a null character, which no process can be given")
    return value


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line, without control characters")
    return value


OWN_OPTIONS = {
    "array": "use --sweep",
    "job-name": "use name",
    "nodes": "use cluster.nodes",
    "ntasks": "every node gets one task",
    "ntasks-per-node": "every node gets one task",
    "open-mode": "a queued again job's log is appended to",
    "output": "logs lie beside the job's script",
    "requeue": "use cluster.max_requeues",
    "no-requeue": "use cluster.max_requeues: 0",
    "signal": "use cluster.signal_seconds",
    "wrap": "the script is scaleup's",
}
"""Maps each option of sbatch that a job's script relies on -> what to do instead."""
SHORT = {"-a": "array", "-J": "job-name", "-N": "nodes", "-n": "ntasks", "-o": "output"}
OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=.*)?|(-[A-Za-z])( ?.*)")


def _sbatch_option(value: str) -> str:
    _one_line(value)
    if not (match := OPTION.fullmatch(value)):
        raise ValueError("is no option of sbatch: write it without #SBATCH, e.g. --mail-type=END")
    name = match[1] or SHORT.get(match[3], "")
    if name in OWN_OPTIONS:
        raise ValueError(f"is decided by scaleup: {OWN_OPTIONS[name]}")
    return value


Word = Annotated[str, Written(r"[^\s\"'\\#]+", "one word without quotes, backslashes and '#'")]
"""Holds one word of an #SBATCH line."""
Time = Annotated[str, BeforeValidator(_quoted_time), AfterValidator(_valid_time)]
Memory = Annotated[str, Written(r"[1-9][0-9]*[MGT]", "a whole number with M, G or T behind it, e.g. 64G")]
VariableName = Annotated[
    str, Written(r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name: letters, digits and '_', no digit first")
]
Value = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_no_null)]
Line = Annotated[Text, AfterValidator(_one_line)]
Option = Annotated[str, AfterValidator(_sbatch_option)]
Mount = Annotated[
    Line, Written(r"/[^,:]*(:/[^,:]*)?(:[a-z+]+)?", "an absolute path of the host, or /host/path:/container/path")
]
PART = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
"""Matches one word of Kubernetes' names (RFC 1123), and of its labels."""
Label = Annotated[
    str,
    Field(max_length=63),
    Written(PART, "lower-case letters, digits and '-', a letter or digit at each end"),
]
Subdomain = Annotated[
    str,
    Field(max_length=253),
    Written(rf"{PART}(\.{PART})*", "lower-case letters, digits, '-' and '.', a letter or digit beside each '.'"),
]
LabelKey = Annotated[
    str,
    Written(
        rf"({PART}(\.{PART})*/)?{WORD}", "the key of a label, e.g. example.org/gpu: letters, digits, '-', '_', '.'"
    ),
]
LabelValue = Annotated[str, Written(rf"({WORD})?", "the value of a label: up to 63 letters, digits, '-', '_' and '.'")]
Options = Annotated[
    list[Option], Field(description="Further options of sbatch, one an entry, e.g. --mail-type=END; given last.")
]


class NodeResources(Section):
    """Holds what is requested of each node."""

    gpus_per_node: Annotated[Int, Field(ge=0)] | None = Field(
        None, description="By default what the run's processes need, where its device is cuda."
    )
    cpus_per_node: Count | None = Field(None, description="By default what the scheduler gives.")
    memory: Memory | None = Field(None, description="Main memory of a node, e.g. 64G; by default the scheduler's.")


class RewardResources(NodeResources):
    """Holds what is requested of the reward group's own node, where it is another kind than the policy's."""

    partition: Word | None = None
    constraint: Word | None = None
    gres: Word | None = None
    sbatch: Options = Field(default_factory=list)


class SlurmConfig(Section):
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = Field(None, description="Features that nodes must have, e.g. a100&nvlink.")
    gres: Word | None = Field(None, description="Instead of --gpus-per-node, e.g. gpu:a100:8.")
    modules: list[Word] = Field(default_factory=list, description="Environment modules that are loaded, in order.")
    sbatch: Options = Field(default_factory=list)


class KubernetesConfig(Section):
    """Holds what only Kubernetes needs. The volume is mounted where this machine has it: paths in a config hold here
    and in the pods."""

    kind: Literal["job", "jobset", "trainjob"] = Field(
        "job",
        description="job: an Indexed Job, which any cluster has. jobset: a JobSet, with other resources for the reward "
        "group. trainjob: a TrainJob of Kubeflow Trainer.",
    )
    namespace: Label | None = None
    volume_claim: Subdomain = Field(description="A claim that all pods can write (ReadWriteMany): the run folder's.")
    mount_path: PathText | None = Field(None, description="Where it is mounted; by default cluster.workdir.")
    queue: Subdomain | None = Field(None, description="A LocalQueue of Kueue.")
    gpu_resource: Word = "nvidia.com/gpu"
    shared_memory: Memory | None = Field(None, description="The most in /dev/shm, e.g. 16G; by default no limit.")
    runtime: Subdomain = Field("torch-distributed", description="For trainjob: the ClusterTrainingRuntime.")
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, description="Of the job and its pods.")
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict, description="Labels that nodes must have.")
    service_account: Subdomain | None = None


class ContainerConfig(Section):
    image: Line
    mounts: list[Mount] = Field(
        default_factory=list, description="For Slurm (pyxis): host path, or host path:container path, beside workdir."
    )


class ClusterConfig(NodeResources):
    """Holds what a run's job requests from a scheduler. See docs/design/clusters.md."""

    gpu_memory: Memory | None = Field(
        None, description="Of one GPU, e.g. 80G: asked for nothing, but parallel.strategy: auto goes by it."
    )
    nodes: Count | None = Field(None, description="What is granted; by default what the run needs.")
    time: Time | None = Field(
        None,
        description='The limit, in quotes: "D-HH:MM:SS", "HH:MM:SS" or minutes; by default the scheduler\'s. On '
        "Kubernetes it counts waiting and all restarts together (of a JobSet, each by itself), and ends the job.",
    )
    signal_seconds: Count = Field(
        120,
        description="How long before the limit, or after a request to stop, a run may take to save and end.",
    )
    max_requeues: Annotated[Int, Field(ge=0)] = Field(
        20, description="How often a run that a signal stopped is queued again."
    )
    workdir: PathText = Field(".", description="The folder in which commands run, the same here and on the nodes.")
    setup: list[Line] = Field(
        default_factory=list, description="Shell lines before the run, e.g. source .venv/bin/activate."
    )
    environment: dict[VariableName, Value] = Field(default_factory=dict, description="Variables of all processes.")
    container: ContainerConfig | None = Field(
        None, description="The image to run in: through pyxis on Slurm, needed on Kubernetes."
    )
    reward: RewardResources | None = Field(
        None, description="The reward group's own node (reward.own_nodes), where it is of another kind."
    )
    slurm: SlurmConfig | None = None
    kubernetes: KubernetesConfig | None = None

    @property
    def time_seconds(self) -> int | None:
        return None if self.time is None else seconds_of(self.time)

    def with_absolute_paths(self) -> Self:
        return self.model_copy(update={"workdir": absolute(self.workdir)})
