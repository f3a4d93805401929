"""Help, validation, planning and rendering answer on a login node: without torch, and in well under a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "transformers", "accelerate", "datasets", "numpy", "pyarrow", "pandas", "matplotlib", "tokenizers"]
PACKAGES = [
    "errors",
    "children",
    "streams",
    "config",
    "records",
    "artifacts",
    "plan",
    "reports",
    "launcher",
    "studies",
    "doctor",
    "runs",
    "labelling",
    "cli",
]

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import scaleup
for name in sys.argv[1:]:
    module = importlib.import_module(f"scaleup.{name}")
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"scaleup.{name}."):
        importlib.import_module(found.name)
print(json.dumps(sorted(sys.modules)))
"""


def test_imports_nothing_heavy(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORT_ALL, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(json.loads(done.stdout))
    assert loaded.isdisjoint(HEAVY)
    expected = {"scaleup.cli", "scaleup.config.load", "scaleup.plan.rules", "scaleup.launcher.agent"}
    assert expected <= loaded
    ours = {name for name in loaded if name.startswith("scaleup.")}
    assert {name.split(".")[1] for name in ours} == set(PACKAGES)


BAD_CONFIG = """
stage: sft
name: x
model: {path: ./nowhere}
data: {train: rows.jsonl, prompt: "{text}", completion: " {label}"}
train: {max_steps: many, seed: 0}
traning: 3
"""
COMMANDS = {
    "help": (["--help"], 0),
    "help of a command": (["run", "--help"], 0),
    "version": (["--version"], 0),
    "init": (["init", "ppo"], 0),
    "convert refused": (["convert", "config.yaml"], 2),
    "schema": (["schema"], 0),
    "refusal": (["run", "config.yaml"], 2),
    "plan refused": (["plan", "config.yaml", "--json"], 2),
    "render refused": (["render", "config.yaml"], 2),
    "runs": (["runs", "."], 0),
    "status refused": (["status", "."], 2),
    "report refused": (["report", "."], 2),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_starts_nothing_imports_little(name: str, tmp_path: Path) -> None:
    """It is counted and not timed, as times differ: 475 modules took 0.95 to 1.15 s of CPU on one machine."""
    arguments, code = COMMANDS[name]
    (tmp_path / "config.yaml").write_text(BAD_CONFIG)
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n' * 1000)
    command = [sys.executable, "-X", "importtime", "-m", "scaleup.cli", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert 300 < len(imported) < 600
    assert set(HEAVY).isdisjoint(imported)


def test_the_json_schema_is_printed_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scaleup.cli", "schema"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(json.loads(done.stdout)["discriminator"]["mapping"]) == {
        "sft",
        "reward",
        "classify",
        "dpo",
        "ppo",
        "rl",
        "distill",
        "prune",
        "quantize",
        "export",
        "card",
        "evaluate",
        "generate",
        "revise",
        "judge",
    }


def test_the_layers_hold(repository: Path, tmp_path: Path) -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, check=False, cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken." in done.stdout


def test_the_layers_are_those_of_the_design(repository: Path) -> None:
    """Every package of ours stands in a layer, so that no contract holds for want of a name."""
    contracts = (repository / "pyproject.toml").read_text(encoding="utf-8")
    packages = {path.stem for path in (repository / "scaleup").iterdir() if path.suffix == ".py" or path.is_dir()}
    for package in packages - {"__init__", "__pycache__"}:
        assert f"scaleup.{package}" in contracts, package
