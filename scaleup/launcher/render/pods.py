"""This module renders what every kind of Kubernetes job has: pods that start `scaleup run`, with the run's volume and
its config."""

from __future__ import annotations

from typing import Any

from scaleup.config.cluster import ClusterConfig, KubernetesConfig
from scaleup.launcher.render.job import words
from scaleup.plan.cluster import Granted

Manifest = dict[str, Any]

CONTAINER = "node"
"""Names the container, as Kubeflow's torch runtime does."""
CONFIG_FOLDER = "/etc/scaleup"
CONFIG_FILE = "config.yaml"
RANK = "SCALEUP_NODE_RANK"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
RUN = f'exec scaleup run "$@" --resume --node-rank "${RANK}"'
BINARY = {"M": "Mi", "G": "Gi", "T": "Ti"}
SHARED_MEMORY = {"name": "shared-memory", "mountPath": "/dev/shm"}


def verbatim(text: str) -> str:
    """Escape text for a command or a variable, where Kubernetes reads $(NAME) as a variable's value and $$ as $."""
    return text.replace("$", "$$")


def command(cluster: ClusterConfig, before: tuple[str, ...] = ()) -> list[str]:
    """Return the container's command. `exec` makes scaleup its first process, which gets SIGTERM."""
    lines = [f"cd {words([cluster.workdir])} || exit 2", *cluster.setup, *before, RUN]
    return [verbatim(word) for word in ("bash", "-c", "\n".join(lines), "scaleup", f"{CONFIG_FOLDER}/{CONFIG_FILE}")]


def environment(cluster: ClusterConfig, rank: int | None = None) -> list[Manifest]:
    """Return the user's variables and the node's rank: its place within an Indexed Job, unless it is known."""
    of_pod = {"valueFrom": {"fieldRef": {"fieldPath": INDEX}}} if rank is None else {"value": str(rank)}
    named = [{"name": name, "value": verbatim(value)} for name, value in cluster.environment.items()]
    return [*named, {"name": RANK, **of_pod}]


def resources(node: Granted, kubernetes: KubernetesConfig) -> Manifest:
    """Return requests and limits, which are alike: a pod that gets more than it requested is the first to be
    evicted."""
    amounts = {"cpu": node.cpus and str(node.cpus), "memory": node.memory and quantity(node.memory)}
    amounts[kubernetes.gpu_resource] = str(node.gpus) if node.gpus else None
    named = {name: amount for name, amount in amounts.items() if amount}
    return {"requests": dict(named), "limits": dict(named)} if named else {}


def quantity(memory: str) -> str:
    return memory[:-1] + BINARY[memory[-1]]


def volumes(name: str, kubernetes: KubernetesConfig) -> list[Manifest]:
    limit = {"sizeLimit": quantity(kubernetes.shared_memory)} if kubernetes.shared_memory else {}
    return [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", **limit}},
        {"name": "runs", "persistentVolumeClaim": {"claimName": kubernetes.volume_claim}},
        {"name": "config", "configMap": {"name": name}},
    ]


def volume_mounts(cluster: ClusterConfig, kubernetes: KubernetesConfig) -> list[Manifest]:
    return [
        dict(SHARED_MEMORY),
        {"name": "runs", "mountPath": kubernetes.mount_path or cluster.workdir},
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
    ]


def placement(kubernetes: KubernetesConfig) -> Manifest:
    """Return where pods may run, and as whom."""
    settings = {"nodeSelector": dict(kubernetes.node_selector), "serviceAccountName": kubernetes.service_account}
    return {key: value for key, value in settings.items() if value}


def labels(name: str, kubernetes: KubernetesConfig) -> dict[str, str]:
    return {"app.kubernetes.io/name": "scaleup", "app.kubernetes.io/instance": name, **kubernetes.labels}


def metadata(name: str, kubernetes: KubernetesConfig, is_queued: bool = False) -> Manifest:
    """Return an object's metadata. What waits in a queue is the job, not its pods or what is beside it."""
    namespace = {"namespace": kubernetes.namespace} if kubernetes.namespace else {}
    queue = {"kueue.x-k8s.io/queue-name": kubernetes.queue} if is_queued and kubernetes.queue else {}
    return {"name": name, **namespace, "labels": {**labels(name, kubernetes), **queue}}


def pod(
    name: str, cluster: ClusterConfig, kubernetes: KubernetesConfig, node: Granted, rank: int | None = None
) -> Manifest:
    """Return a pod's template. The pod has `signal_seconds` to save and end when it is told to stop."""
    assert cluster.container is not None  # a rule sees to it
    container = {
        "name": CONTAINER,
        "image": cluster.container.image,
        "command": command(cluster),
        "env": environment(cluster, rank),
        "resources": resources(node, kubernetes),
        "volumeMounts": volume_mounts(cluster, kubernetes),
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster.signal_seconds,
        **placement(kubernetes),
        "containers": [container],
        "volumes": volumes(name, kubernetes),
    }
    return {"metadata": {"labels": labels(name, kubernetes)}, "spec": spec}
