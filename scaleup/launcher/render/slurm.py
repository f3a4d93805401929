"""A job goes in; its files for Slurm come out: one sbatch script that starts `scaleup run` once a node, has it save
before the time limit or a preemption ends it, and queues it again. docs/design/clusters.md has what was tried."""

from __future__ import annotations

from collections.abc import Sequence

from scaleup.config.cluster import ClusterConfig, RewardResources, SlurmConfig
from scaleup.launcher.render.job import Files, Job, exports, sbatch_path, words
from scaleup.plan.cluster import Granted
from scaleup.plan.cluster_targets import local_paths

SCRIPT = "job.sbatch"
TASK = 'bash -c "$task" scaleup "$@"'
"""Is what srun starts on every node; `$task` is set above it."""
RUN = 'exec scaleup run "$@" --resume --node-rank "$SLURM_PROCID"'
"""Is expanded on each node: the batch script's own rank would be the same for all."""

UNCHECKED = "# shellcheck disable=SC1003,SC1091,SC2016,SC2317 # values are quoted; the trap calls stop"
SRUN_OPTIONS = ("--label", "--export=ALL", "--kill-on-bad-exit=0", "--wait=60")
STOPPING = """\
# of an array, this task alone: the last task's SLURM_JOB_ID stands for all of them
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
stop() { scancel --quiet --signal=TERM "$job" || true; } # a signal to srun would end its tasks at once
trap stop USR1 TERM
"""
WAITING = """\
# in the background: bash runs a trap only between commands; a signal ends `wait`, not srun
step=$!
until wait "$step"; ! kill -0 "$step" 2>/dev/null; do :; done
code=0
wait "$step" || code=$? # so that `set -e` in cluster.setup does not end it here
trap - USR1 TERM
"""
ENDING = """\
# stopped by a signal: saved (75), or not yet begun (143). A job that was cancelled is no longer RUNNING by now
case $code in
  75 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt MOST ] &&
      scontrol --oneliner show job "$job" | grep JobState=RUNNING >/dev/null &&
      scontrol requeue "$job"; then
      sleep 600 # Slurm ends this script
    fi
    ;;
esac
exit "$code"
"""

LAUNCH = """\
# Written by scripts/write_launch.py: what `scaleup render` writes, for options that sbatch is given, in an activated
# environment and from the project's folder.
#   sbatch {usage} CONFIG [KEY=VALUE]...
"""
USAGE = {
    False: "--nodes=2 --gpus-per-node=8 launch/slurm.sbatch",
    True: "--nodes=2 --gpus-per-node=8 : --gpus-per-node=1 launch/slurm_ppo.sbatch",
}
"""Shows how sbatch is called, by whether the reward group's node is of another kind. Where all are alike, slurm.sbatch
splits one allocation."""


def slurm_files(job: Job) -> Files:
    """Render the script and the config, or configs, that it names."""
    return {SCRIPT: sbatch_script(job), **job.config_files}


def sbatch_script(job: Job) -> str:
    """Render the script that sbatch takes."""
    cluster, slurm = job.cluster, job.cluster.slurm or SlurmConfig()
    lines = ["#!/bin/bash", *_options(job, slurm)]
    if job.reward_node is not None and cluster.reward is not None:
        lines += ["#SBATCH hetjob", *_reward_options(job, slurm, cluster.reward)]
    lines += [f"# Written by `scaleup render`: sbatch {words([job.folder / SCRIPT])}", UNCHECKED, ""]
    lines += [f"cd {words([cluster.workdir])} || exit 1"]
    lines += [words(["module", "load", module]) for module in slurm.modules]
    setup = [*exports(cluster.environment), *cluster.setup]
    if cluster.container:  # within it: an image's own variables come before those of the host
        lines += [f"mkdir -p {words([job.config.runs_dir])}", _set_arguments(job), ""]
        return "\n".join(lines) + script_body(setup, _parts(job), cluster.max_requeues)
    lines += [*setup, _set_arguments(job), ""]
    return "\n".join(lines) + script_body([], _parts(job), cluster.max_requeues)


def script_body(setup: Sequence[str], parts: Sequence[str], max_requeues: int) -> str:
    """Render what comes after the options and the settings, in every script: "$@" are the arguments of `scaleup run`.
    `setup` runs within each task; `parts` are srun's options for each component of the job."""
    step = "srun " + " : \\\n  ".join(f"{part} \\\n  {TASK}" for part in parts)
    return "\n".join([STOPPING, f"{task_variable(setup)}{step} &", WAITING, ENDING.replace("MOST", str(max_requeues))])


def launch_script(is_het: bool) -> str:
    """Render the script that knows no run: its arguments are those of `scaleup run`, its resources sbatch's."""
    cluster = ClusterConfig()
    node = ["#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1"]
    options = [f"#SBATCH {option}" for option in [*requeue_options(cluster), '--output="%x-%j.log"']]
    lines = ["#!/bin/bash", "#SBATCH --job-name=scaleup", *node, *options]
    lines += ["#SBATCH hetjob", *node] if is_het else []
    groups = ["_HET_GROUP_0", "_HET_GROUP_1"] if is_het else [""]
    parts = [_launched(number, group) for number, group in enumerate(groups)]
    text = "\n".join(lines) + "\n" + LAUNCH.format(usage=USAGE[is_het]) + UNCHECKED + "\n\n"
    return text + script_body([], parts, cluster.max_requeues)


def _launched(number: int, group: str) -> str:
    """Return srun's part for a component of a job, whose processors Slurm names in a variable of the component's
    own."""
    variable = f"SLURM_CPUS_PER_TASK{group}"
    options = [*SRUN_OPTIONS, *([f"--het-group={number}"] if group else [])]
    cpus = f'${{{variable}:+"--cpus-per-task=${variable}"}}'
    return f"{words(options)} \\\n  {cpus}"


def _options(job: Job, slurm: SlurmConfig) -> list[str]:
    cluster = job.cluster
    num_nodes = job.num_nodes - (job.reward_node is not None)
    options = [f"--job-name={job.name}", *_node_options(num_nodes, job.node, slurm.gres)]
    if job.is_sweep:
        at_a_time = f"%{job.max_parallel}" if job.max_parallel else ""
        options.append(f"--array=0-{len(job.configs) - 1}{at_a_time}")
    log = "%A_%a.log" if job.is_sweep else "%j.log"
    options += [f"--time={cluster.time}"] if cluster.time else []
    named = ("partition", "account", "qos", "constraint")
    options += [f"--{name}={value}" for name in named if (value := getattr(slurm, name))]
    options += requeue_options(cluster)
    options.append(f'--output={sbatch_path(job.folder / "logs")[:-1]}/{log}"')
    return [f"#SBATCH {option}" for option in [*options, *slurm.sbatch]]


def requeue_options(cluster: ClusterConfig) -> list[str]:
    again = "--requeue" if cluster.max_requeues else "--no-requeue"
    return [f"--signal=B:USR1@{cluster.signal_seconds}", again, "--open-mode=append"]


def _reward_options(job: Job, slurm: SlurmConfig, reward: RewardResources) -> list[str]:
    """Return the options of the second component, which takes over nothing from the first."""
    assert job.reward_node is not None
    options = _node_options(1, job.reward_node, reward.gres)
    options += [f"--time={job.cluster.time}"] if job.cluster.time else []
    values = {"partition": reward.partition or slurm.partition, "account": slurm.account, "qos": slurm.qos}
    named = {**values, "constraint": reward.constraint}
    options += [f"--{name}={value}" for name, value in named.items() if value]
    return [f"#SBATCH {option}" for option in [*options, *reward.sbatch]]


def _node_options(count: int, node: Granted, gres: str | None) -> list[str]:
    options = [f"--nodes={count}", "--ntasks-per-node=1"]
    if gres:
        options.append(f"--gres={gres}")
    elif node.gpus:
        options.append(f"--gpus-per-node={node.gpus}")
    options += [f"--cpus-per-task={node.cpus}"] if node.cpus else []
    return options + ([f"--mem={node.memory}"] if node.memory else [])


def _set_arguments(job: Job) -> str:
    if not job.is_sweep:
        return f"set -- {words([job.folder / job.config_name(0)])}"
    return f'set -- {words([job.folder / "config-"])}"$SLURM_ARRAY_TASK_ID".yaml'


def _parts(job: Job) -> list[str]:
    """Return srun's options for one task a node; in a het job the components' tasks are counted through, the policy's
    first."""
    shared = [*SRUN_OPTIONS, *_container_options(job)]
    if job.reward_node is None:
        return [words([*shared, *_cpus(job.node)])]
    nodes = enumerate((job.node, job.reward_node))
    return [words([*shared, f"--het-group={number}", *_cpus(node)]) for number, node in nodes]


def task_variable(setup: Sequence[str]) -> str:
    return f"task={words([chr(10).join([*setup, RUN])])}\n"


def _cpus(node: Granted) -> list[str]:
    """Return the cores for srun, which does not take them over from sbatch since Slurm 22.05."""
    return [f"--cpus-per-task={node.cpus}"] if node.cpus else []


def _container_options(job: Job) -> list[str]:
    """Return Pyxis's options. The folders that a run reads and writes are there under their own names."""
    container = job.cluster.container
    if container is None:
        return []
    read = {str(path) for config in job.configs for _, path in local_paths(config)}
    needed = {job.cluster.workdir, job.config.runs_dir, str(job.folder), *read}
    mounts = [f"{folder}:{folder}" for folder in sorted(needed)] + container.mounts
    named = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
    return [*named, f"--container-workdir={job.cluster.workdir}"]
