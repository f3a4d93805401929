"""The package as users install it: the wheel in an empty environment, first with what `pip install scaleup` brings
beside it, then with what `scaleup[train]` brings. Nothing is downloaded: the packages are those of this environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from tests.cli import Result
from tests.conftest import REPOSITORY

BUILD = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_wheel(to); b.build_sdist(to)"
SOURCES = ("scaleup", "pyproject.toml", "README.md", "LICENSE")
MOST = 30e6
"""Bytes of the control plane with all that it needs, before Python compiles it."""
TIMEOUT = 240
NEEDS_TORCH = "pip install 'scaleup[train]'"
CONFIG = """
stage: sft
name: tiny
model: {path: "builtin:tiny-llama"}
data: {train: rows.jsonl, text: "{text}", max_length: 32}
train: {max_steps: 2, per_device_train_batch_size: 2}
cluster: {gpus_per_node: 0, cpus_per_node: 2, time: "1:00:00", slurm: {}}
"""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it."""

    site: Path
    scripts: Path
    folder: Path
    """A working folder with a config and its rows."""

    def __call__(self, *arguments: str) -> Result:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        clean |= {"XDG_CACHE_HOME": str(self.folder / "cache"), "PATH": f"{self.scripts}:/usr/bin:/bin"}
        command = [self.scripts / "scaleup", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=clean, capture_output=True, text=True, check=False, timeout=TIMEOUT
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def take(self, names: Iterable[str]) -> int:
        """Puts packages of this environment, and all that these need, into that one. Returns how many bytes."""
        size = 0
        for package in closure(names):
            files = [file for file in package.files or [] if "__pycache__" not in file.parts]
            size += sum(Path(str(file.locate())).stat().st_size for file in files)
            for top in {file.parts[0] for file in files} - {"..", ""}:
                link = self.site / top
                if not link.exists():
                    link.symlink_to(str(package.locate_file(top)))
        return size

    def needs(self, extra: str = "") -> list[str]:
        """Returns what the wheel itself declares, beside what it needs in any case if an extra is named."""
        (package,) = metadata.distributions(name="scaleup", path=[str(self.site)])
        return [each.name for each in required(package, {extra}) if each.name != "scaleup"]


def required(package: metadata.Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    for each in map(Requirement, package.requires or []):
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield each


def closure(names: Iterable[str]) -> list[metadata.Distribution]:
    known: dict[str, metadata.Distribution] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        each = waiting.pop()
        key = each.name.lower().replace("_", "-")
        package = metadata.distribution(each.name)
        if key not in known or each.extras:
            more = required(package, each.extras)
            waiting += [need for need in more if need.name.lower().replace("_", "-") not in known]
        known[key] = package
    return list(known.values())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, made of the sources alone."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        place = REPOSITORY / name
        if place.is_dir():
            shutil.copytree(place, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, sources / name)
    subprocess.run([sys.executable, "-c", BUILD, str(built)], cwd=sources, check=True, capture_output=True)
    return built


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("folder")
    venv.create(place, with_pip=False)
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    (folder / "rows.jsonl").write_text('{"text": "a b c"}\n' * 8)
    (folder / "config.yaml").write_text(CONFIG)
    (site,) = place.glob("lib/python*/site-packages")
    return Installed(site, place / "bin", folder)


@pytest.fixture(scope="module")
def control_plane(installed: Installed) -> Installed:
    """With what `pip install scaleup` brings."""
    own = sum(file.stat().st_size for file in installed.site.rglob("*") if file.is_file() and file.suffix != ".pyc")
    assert own + installed.take(installed.needs()) < MOST
    return installed


def test_what_is_in_the_files(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = ZipFile(wheel).namelist()
    assert "scaleup/py.typed" in names
    assert {f"scaleup/config/starters/{stage}.yaml" for stage in ("sft", "ppo")} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith("scaleup")]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.getnames())


def test_the_control_plane_alone(control_plane: Installed) -> None:
    scaleup = control_plane
    assert not (scaleup.site / "torch").exists()
    assert scaleup("--version").stdout.startswith("scaleup 0.")
    assert scaleup("--help").code == 0
    assert json.loads(scaleup("schema").stdout)["title"] == "scaleup run config"
    assert scaleup("init", "ppo").code == 0
    assert (scaleup.folder / "ppo.yaml").is_file()


def test_mistakes_are_found_without_torch(control_plane: Installed) -> None:
    result = control_plane("plan", "config.yaml", "train.max_steps=many", "data.train=gone.jsonl")
    assert result.code == 2
    assert "train.max_steps" in result.stderr and "gone.jsonl" in result.stderr


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_needs_a_model_is_refused_by_name(command: str, control_plane: Installed) -> None:
    result = control_plane(command, "config.yaml")
    assert result.code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: scaleup[train]: ") and line.endswith(NEEDS_TORCH)
    assert not (control_plane.folder / "runs").exists()


def test_jobs_are_rendered_without_torch(control_plane: Installed) -> None:
    for command in (("render", "config.yaml"), ("submit", "config.yaml", "--dry-run")):
        result = control_plane(*command)
        assert result.code == 0, result.stderr
        assert "#SBATCH" in result.stdout
        assert "the model was not looked at" in result.stderr


def test_the_doctor_says_what_is_missing(control_plane: Installed) -> None:
    result = control_plane("doctor", "--json")
    failed = {row["name"]: row for row in json.loads(result.stdout) if row["level"] == "fail"}
    assert failed["scaleup[train]"]["remedy"] == NEEDS_TORCH


@pytest.mark.slow
def test_the_train_extra_runs(control_plane: Installed) -> None:
    """And no more than it: what another extra brings is refused by the extra's name."""
    scaleup = control_plane
    scaleup.take(scaleup.needs("train"))
    assert not (scaleup.site / "deepspeed").exists()
    result = scaleup("run", "config.yaml")
    assert result.code == 0, result.stdout + result.stderr
    assert (scaleup.folder / "runs/tiny/manifest.json").is_file()
    refused = scaleup("plan", "config.yaml", "parallel.strategy=zero2", "parallel.num_processes=2", "quantization=4bit")
    assert refused.code == 2
    assert "zero2 needs deepspeed, not installed here -> pip install 'scaleup[deepspeed]'" in refused.stderr
    assert "4bit needs bitsandbytes, not installed here -> pip install 'scaleup[quantization]'" in refused.stderr
    exported = scaleup("export", "runs/tiny", "export.format=gguf")
    assert "gguf needs xllamacpp, not installed here -> pip install 'scaleup[gguf]'" in exported.stderr
