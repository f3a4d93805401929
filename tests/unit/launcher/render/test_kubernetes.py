"""Manifests: as they were read, valid by the published schemas of every kind, and with values that Kubernetes hands on
as they are."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from scaleup.config.load import dump
from scaleup.config.stages import STAGES
from scaleup.launcher.render.kubernetes import dumped, kubernetes_files, manifests
from scaleup.launcher.render.pods import verbatim
from tests.conftest import REPOSITORY
from tests.unit.launcher.render.cases import HOSTILE, KUBERNETES, PPO, REWARD_NODE, SFT, config_of, job_of, sweep_of
from tests.unit.launcher.render.golden import check

PUBLISHED = REPOSITORY.parent / "shared" / "recipes" / "crds"
"""CustomResourceDefinitions of JobSet and TrainJob, where somebody put them beside the repository."""


def kubernetes(kind: str, **changes: Any) -> dict[str, Any]:
    own = {**KUBERNETES["kubernetes"], "kind": kind}
    return {**KUBERNETES, "kubernetes": own, **changes}


REWARD = {key: REWARD_NODE[key] for key in ("gpus_per_node", "cpus_per_node", "memory")}
JOBS = {
    "job": job_of(**kubernetes("job")),
    "jobset": job_of(PPO, **kubernetes("jobset", reward=REWARD)),
    "trainjob": job_of(**kubernetes("trainjob")),
    "hostile-job": job_of(**kubernetes("job", environment=HOSTILE, workdir="/shared/it's $(HOME)")),
}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kubernetes_files(JOBS[name])["job.yaml"]))


@pytest.mark.parametrize("name", JOBS)
def test_is_as_it_was_read(name: str) -> None:
    """The config aside, which every new key changes."""
    config, *others = documents(name)
    assert config["data"] == {"config.yaml": dump(JOBS[name].config)}
    check(f"{name}.yaml", dumped([{**config, "data": {"config.yaml": "the run's\n"}}, *others]))


@pytest.mark.parametrize("name", JOBS)
def test_yaml_gives_back_what_was_meant(name: str) -> None:
    assert documents(name) == manifests(JOBS[name].config)


@pytest.mark.parametrize("name", JOBS)
def test_core_kinds_are_valid(name: str) -> None:
    core = [document for document in documents(name) if document["kind"] in ("ConfigMap", "Service", "Job")]
    assert core
    for document in core:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_pods_of_custom_kinds_are_valid_too() -> None:
    """Their jobs' specs are Kubernetes' own."""
    for replicated in documents("jobset")[1]["spec"]["replicatedJobs"]:
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "x"},
            "spec": replicated["template"]["spec"],
        }
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("name", "file"), [("jobset", "crd-jobset.yaml"), ("trainjob", "crd-trainjob.yaml")])
def test_custom_kinds_are_valid(name: str, file: str) -> None:
    validator = jsonschema.Draft202012Validator(strict_schema(file))
    document = documents(name)[1]
    validator.validate(document)
    for place in places(document["spec"], ()):
        misspelled = yaml.safe_load(yaml.safe_dump(document))
        at(misspelled["spec"], place)["mispelled"] = 1
        assert not validator.is_valid(misspelled), place


def strict_schema(file: str) -> dict[str, Any]:
    """A published definition's schema, with what it does not name forbidden: an API server would drop it silently."""
    if not (PUBLISHED / file).is_file():
        pytest.skip(f"{file} is not in {PUBLISHED}: the definition is published with its project")
    definition = yaml.safe_load((PUBLISHED / file).read_text(encoding="utf-8"))
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    closed: dict[str, Any] = close(schema)
    return closed


def close(schema: Any) -> Any:
    if isinstance(schema, list):
        return [close(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: close(value) for key, value in schema.items()}
    if kept.pop("x-kubernetes-int-or-string", False):
        kept = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if isinstance(kept.get("properties"), dict) and "additionalProperties" not in kept:
        kept["additionalProperties"] = False
    return kept


def places(value: Any, here: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Every mapping in a document whose keys are named by its schema."""
    free = {"labels", "limits", "requests", "nodeSelector"}
    found = [here] if isinstance(value, dict) and not (here and here[-1] in free) else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [place for key, item in items for place in places(item, (*here, key)) if key not in free]


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def as_kubernetes_reads(text: str, variables: dict[str, str]) -> str:
    """The documented rule: $$ is $, $(NAME) a variable's value, and left alone where there is none."""

    def read(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", read, text)


@pytest.mark.parametrize("name", HOSTILE)
def test_values_arrive_as_they_are(name: str) -> None:
    assert as_kubernetes_reads(verbatim(HOSTILE[name]), {"X": "wrong", "id": "wrong"}) == HOSTILE[name]
    env = documents("hostile-job")[2]["spec"]["template"]["spec"]["containers"][0]["env"]
    given = {entry["name"]: entry.get("value") for entry in env}
    assert as_kubernetes_reads(given[name], {"X": "wrong"}) == HOSTILE[name]


def test_the_config_arrives_as_it_is() -> None:
    config = JOBS["hostile-job"].config
    text = documents("hostile-job")[0]["data"]["config.yaml"]
    assert STAGES["sft"].model_validate(yaml.safe_load(text)) == config


def test_every_node_knows_its_rank() -> None:
    def ranks(spec: dict[str, Any]) -> Any:
        [rank] = [entry for entry in spec["containers"][0]["env"] if entry["name"] == "SCALEUP_NODE_RANK"]
        return rank.get("value", rank.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath"))

    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert ranks(documents("job")[2]["spec"]["template"]["spec"]) == index
    policy, reward = documents("jobset")[1]["spec"]["replicatedJobs"]
    assert ranks(policy["template"]["spec"]["template"]["spec"]) == index
    assert policy["template"]["spec"]["completions"] == 2
    assert ranks(reward["template"]["spec"]["template"]["spec"]) == "2"


def test_a_sweep_is_a_job_a_point() -> None:
    files = kubernetes_files(sweep_of(2, **kubernetes("job")))
    assert [next(yaml.safe_load_all(text))["metadata"]["name"] for text in files.values()] == ["reviews-0", "reviews-1"]
    assert list(files) == ["job-0.yaml", "job-1.yaml"]


def test_nothing_is_asked_for_that_was_not_named() -> None:
    least = {"slurm": None, "container": {"image": "x"}, "kubernetes": {"volume_claim": "shared"}}
    raw = {**SFT, "parallel": {"num_processes": 1}, "cluster": {"workdir": "/shared"}}
    spec = manifests(config_of(raw, **least))[2]["spec"]
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"] == {} and "activeDeadlineSeconds" not in spec
    assert pod["volumes"][0] == {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    assert pod["containers"][0]["volumeMounts"][1] == {"name": "runs", "mountPath": "/shared"}
