"""A job goes in; its manifests for Kubernetes come out: an Indexed Job, which any cluster has, a JobSet or a TrainJob;
each with the run's config beside it. docs/design/clusters.md says what restarts what."""

from __future__ import annotations

from typing import Any

import yaml

from scaleup.config.cluster import ClusterConfig, KubernetesConfig
from scaleup.config.load import dump
from scaleup.config.run import RunConfig
from scaleup.launcher.render import pods
from scaleup.launcher.render.job import Files, Job
from scaleup.launcher.render.pods import Manifest
from scaleup.plan.cluster import Granted, granted, granted_to_reward, has_reward_node, nodes_of

MISTAKES = (2, 126, 127)
"""Lists the exit codes for what would fail again: scaleup's own, and the shell's for a command that it cannot start."""
TORCH_JOB = "node"
"""Names the replicated job of Kubeflow's torch runtime."""
FORGET_TORCHRUN = 'unset "${!PET_@}"'
"""Unsets what the torch runtime sets for a torchrun of its own, which ours would obey."""


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def kubernetes_files(job: Job) -> Files:
    """Render one file a run, which `kubectl create` takes."""
    names = [f"job-{number}.yaml" for number in range(len(job.configs))] if job.is_sweep else ["job.yaml"]
    return {name: dumped(manifests(config)) for name, config in zip(names, job.configs, strict=True)}


def manifests(config: RunConfig) -> list[Manifest]:
    """Return the manifests of a run, in the order in which they are created."""
    cluster = config.cluster
    assert cluster is not None and cluster.kubernetes is not None  # a rule sees to it
    kubernetes = cluster.kubernetes
    if kubernetes.kind == "trainjob":
        return [_config_map(config, kubernetes), _train_job(config, cluster, kubernetes)]
    if kubernetes.kind == "jobset":
        return [_config_map(config, kubernetes), _job_set(config, cluster, kubernetes)]
    return [_config_map(config, kubernetes), _service(config, kubernetes), _job(config, cluster, kubernetes)]


def dumped(documents: list[Manifest]) -> str:
    """Dump manifests as YAML that a person can read."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000, explicit_start=True)


def _config_map(config: RunConfig, kubernetes: KubernetesConfig) -> Manifest:
    """Return the ConfigMap of the run's config. It is immutable: a pod that starts again reads what the first one
    read."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": pods.metadata(config.name, kubernetes),
        "immutable": True,
        "data": {pods.CONFIG_FILE: dump(config)},
    }


def _service(config: RunConfig, kubernetes: KubernetesConfig) -> Manifest:
    """Return the headless Service, which gives each pod a name that the others can look up, also before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": pods.metadata(config.name, kubernetes),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"app.kubernetes.io/instance": config.name},
        },
    }


def _job(config: RunConfig, cluster: ClusterConfig, kubernetes: KubernetesConfig) -> Manifest:
    """Return an Indexed Job. A pod that saved and ended, or failed, comes again, and so do its peers, which end with
    it."""
    count = nodes_of(config)
    template = pods.pod(config.name, cluster, kubernetes, granted(config, cluster))
    template["spec"]["subdomain"] = config.name
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": pods.metadata(config.name, kubernetes, is_queued=True),
        "spec": _job_spec(count, template, cluster, cluster.max_requeues * count),
    }


def _job_spec(count: int, template: Manifest, cluster: ClusterConfig, backoff_limit: int) -> Manifest:
    limit = cluster.time_seconds
    mistake = {"containerName": pods.CONTAINER, "operator": "In", "values": list(MISTAKES)}
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    return {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": count,
        "backoffLimit": backoff_limit,
        **({"activeDeadlineSeconds": limit} if limit else {}),
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": mistake},
                {"action": "Ignore", "onPodConditions": disrupted},
            ]
        },
        "template": template,
    }


def _job_set(config: RunConfig, cluster: ClusterConfig, kubernetes: KubernetesConfig) -> Manifest:
    """Return a JobSet. All pods start again together when one has failed. It is done when the policy is."""
    count = config.parallel.num_nodes
    policy = _replicated("policy", count, config, granted(config, cluster), None)
    jobs = [policy]
    if has_reward_node(config):
        node = granted_to_reward(config, cluster) or granted(config, cluster)
        reward = _replicated("reward", 1, config, node, rank=count)
        jobs.append({**reward, "dependsOn": [{"name": "policy", "status": "Ready"}]})
    final = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": pods.metadata(config.name, kubernetes, is_queued=True),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": ["policy"]},
            "failurePolicy": {"maxRestarts": cluster.max_requeues, "rules": [final]},
            "replicatedJobs": jobs,
        },
    }


def _replicated(name: str, count: int, config: RunConfig, node: Granted, rank: int | None) -> Manifest:
    cluster = config.cluster
    assert cluster is not None and cluster.kubernetes is not None
    template = pods.pod(config.name, cluster, cluster.kubernetes, node, rank)
    return {"name": name, "replicas": 1, "template": {"spec": _job_spec(count, template, cluster, 0)}}


def _train_job(config: RunConfig, cluster: ClusterConfig, kubernetes: KubernetesConfig) -> Manifest:
    """Return a TrainJob. The runtime says how its pods start again; ours is the command, and the pods' resources."""
    assert cluster.container is not None
    trainer: dict[str, Any] = {
        "image": cluster.container.image,
        "command": pods.command(cluster, (FORGET_TORCHRUN,)),
        "env": pods.environment(cluster),
        "numNodes": nodes_of(config),
        "resourcesPerNode": pods.resources(granted(config, cluster), kubernetes),
    }
    mounts = [{"name": pods.CONTAINER, "volumeMounts": pods.volume_mounts(cluster, kubernetes)}]
    pod = {
        "terminationGracePeriodSeconds": cluster.signal_seconds,
        **pods.placement(kubernetes),
        "containers": mounts,
        "volumes": pods.volumes(config.name, kubernetes),
    }
    patched = {"name": TORCH_JOB, "template": {"spec": {"template": {"spec": pod}}}}
    patch = {
        "manager": "scaleup.io/render",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patched]}}},
    }
    limit = cluster.time_seconds
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": pods.metadata(config.name, kubernetes, is_queued=True),
        "spec": {
            **({"activeDeadlineSeconds": limit} if limit else {}),
            "runtimeRef": {"name": kubernetes.runtime},
            "trainer": trainer,
            "runtimePatches": [patch],
        },
    }
