"""launch/ is what the renderer writes, and a scheduler can be given it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def written() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("write_launch", REPOSITORY / "scripts" / "write_launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files: dict[str, str] = module.files()
    return files


def test_files_are_up_to_date() -> None:
    here = {str(file.relative_to(LAUNCH)): file.read_text() for file in LAUNCH.rglob("*") if file.is_file()}
    assert here == written(), "run scripts/write_launch.py"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_they_name_no_config_of_their_own() -> None:
    assert len(SCRIPTS) == 3
    for script in SCRIPTS:
        assert 'scaleup run "$@" --resume' in script.read_text()


def test_the_local_one_hands_on_its_arguments(tmp_path: Path) -> None:
    program = tmp_path / "scaleup"
    program.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    program.chmod(0o755)
    command = [LAUNCH / "local.sh", "a b.yaml", "name='x $y'"]
    done = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\0")[:-1] == ["run", "a b.yaml", "name='x $y'", "--resume"]


def test_the_job_is_valid() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all((LAUNCH / "kubernetes" / "job.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    pod = documents[1]["spec"]["template"]["spec"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
