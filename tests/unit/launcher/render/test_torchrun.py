"""The script for nodes without a scheduler, executed with a program in scaleup's place."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from scaleup.launcher.render.torchrun import SCRIPT, torchrun_files
from tests.unit.launcher.render.cases import HOSTILE, job_of


def test_a_node_is_told_its_rank(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "scaleup"
    program.write_text(f'#!/bin/bash\nprintf "%s\\0" "$PWD" "$@" >"{tmp_path}/given"\nenv -0 >"{tmp_path}/environ"\n')
    program.chmod(0o755)
    job = job_of(folder=tmp_path / "it's $1", workdir=str(tmp_path), setup=[], environment=HOSTILE)
    files = torchrun_files(job)
    assert list(files) == [SCRIPT, "config.yaml"]
    (tmp_path / SCRIPT).write_text(files[SCRIPT])
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", tmp_path / SCRIPT, "3"], env={**os.environ, "PATH": path}, check=True, timeout=60)
    given = (tmp_path / "given").read_text().split("\0")[:-1]
    config = str(tmp_path / "it's $1" / "config.yaml")
    assert given == [str(tmp_path), "run", config, "--resume", "--node-rank", "3"]
    environ = dict(entry.split("=", 1) for entry in (tmp_path / "environ").read_text().split("\0") if entry)
    assert {name: environ[name] for name in HOSTILE} == HOSTILE


def test_it_needs_the_rank(tmp_path: Path) -> None:
    (tmp_path / SCRIPT).write_text(torchrun_files(job_of(workdir=str(tmp_path), setup=[]))[SCRIPT])
    done = subprocess.run(["bash", tmp_path / SCRIPT], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0 and "give the rank of this node, from 0" in done.stderr
