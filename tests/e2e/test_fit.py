"""`scaleup plan --fit` through the real command line: what is proposed is pasted back, and fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import differing, scaleup, write_config
from tests.small_runs import SFT, write_rows

CONFIG = differing(SFT, {"name": "large", "train.per_device_train_batch_size": 64, "data.max_length": 256})
MACHINE = ("--gpus", "2", "--gpu-memory", "0.1")


@pytest.mark.slow
def test_the_first_proposal_fits(tmp_path: Path) -> None:
    write_rows(tmp_path)
    file = write_config(CONFIG, tmp_path)
    found = scaleup("plan", file, *MACHINE, "--fit", "--json", "train.max_steps=3", cwd=tmp_path)
    assert found.code == 0, found.stderr
    fit = json.loads(found.stdout)
    assert not fit["fits"] and fit["now"]["needs"] > fit["usable"]
    first = fit["proposals"][0]
    assert first["kind"] == "same steps" and "train.max_steps=3" in first["overrides"]
    pasted = scaleup("plan", file, *first["overrides"], *MACHINE, "--json", cwd=tmp_path)
    assert pasted.code == 0, pasted.stderr
    plan = json.loads(pasted.stdout)
    strategy, batch = plan["groups"][0]["strategy"], plan["batch"]
    assert strategy in plan["fitting"]
    assert next(row["peak"] for row in plan["memory"] if row["strategy"] == strategy) == first["needs"]
    assert batch["micro_batch"] * batch["accumulation"] * 2 == batch["global_batch"] == 128
    shown = scaleup("plan", file, *first["overrides"], *MACHINE, "--fit", cwd=tmp_path)
    assert shown.code == 0 and shown.stdout.startswith("fits (of the ")


def test_mistakes_are_shown_as_without_it(tmp_path: Path) -> None:
    write_rows(tmp_path)
    file = write_config(CONFIG, tmp_path)
    mistakes = ("train.max_step=3", "parallel.strategy=fsdp2", "quantization=8bit")
    plain, with_fit = (scaleup("plan", file, *mistakes, *more, cwd=tmp_path) for more in ((), ("--fit",)))
    assert plain.code == with_fit.code == 2
    assert with_fit.stderr == plain.stderr and with_fit.stderr.count("error: ") >= 2
