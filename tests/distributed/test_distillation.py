"""Distillation under every strategy, the teacher sharded too: with the same rows, the same trajectory and student."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaleup.plan.compat import table
from tests.distributed.test_runtime import python

SHARED = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class Trial:
    model: str
    strategy: str
    adapter: str = "full"
    quantization: str | None = None
    precision: str = "no"
    divergence: str = "forward_kl"
    projection: bool = True
    gradient_checkpointing: bool = False
    cache: int | None = None
    """Of so many tokens."""

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        same = (self.adapter, self.quantization, self.precision, self.divergence)
        return Trial(self.model, "single", *same, cache=self.cache)


EQUAL = [
    *(Trial("llama", strategy) for strategy in SHARED),
    *(Trial("t5", strategy, divergence="jsd") for strategy in ("ddp", "zero2", "zero3", "fsdp2")),
    *(Trial("llama", strategy, "lora") for strategy in SHARED),
    *(Trial("bart", strategy) for strategy in ("ddp", "zero3")),
    *(Trial("bert", strategy) for strategy in ("ddp", "zero2", "zero3", "fsdp2")),
    Trial("llama", "zero3", gradient_checkpointing=True),
    Trial("t5", "ddp", divergence="jsd", gradient_checkpointing=True),
    Trial("llama", "ddp", "lora", quantization="4bit"),
    *(Trial("llama", strategy, cache=20) for strategy in SHARED),
    Trial("llama", "zero3", "lora", cache=20),
    Trial("t5", "zero3", cache=20),
    Trial("bart", "zero3", cache=20),
]
"""BART's head is not plain: its loss comes from logits. BERT is a classifier, its student has a new head."""
LOW = [Trial("llama", strategy, precision="bf16") for strategy in ("ddp", "zero3", "fsdp2")]
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL, *LOW]))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("distill") / "trials.jsonl"
    result = python("-m", "tests.distributed.distill_cells", out, cwd=repository, timeout=600)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {row["trial"]: row for row in rows}


def test_every_cell_that_is_ok_is_tried() -> None:
    """Those of stage distill in docs/compatibility.md."""
    ok = {(c.adapter, c.strategy, c.quantization, c.precision) for c, found in table("distill") if found.status == "ok"}
    assert ok == {(trial.adapter, trial.strategy, trial.quantization, trial.precision) for trial in TRIALS}


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_every_strategy_is_one_process(found: dict[str, dict[str, Any]], trial: Trial) -> None:
    row, alone = found[trial.name], found[trial.alone.name]
    assert "error" not in row, row["error"]
    assert "error" not in alone, alone["error"]
    assert len(row["losses"]) == 4
    assert row["losses"] == pytest.approx(alone["losses"], rel=2e-5)
    assert row["eval_losses"] == pytest.approx(alone["eval_losses"], rel=2e-5)
    assert row["weights"].keys() == alone["weights"].keys()
    for name, marks in row["weights"].items():
        assert marks == pytest.approx(alone["weights"][name], abs=1e-5), name


@pytest.mark.parametrize("trial", [*{trial.alone: None for trial in EQUAL}, *LOW], ids=lambda trial: trial.name)
def test_it_learns(found: dict[str, dict[str, Any]], trial: Trial) -> None:
    row = found[trial.name]
    assert "error" not in row, row["error"]
    assert row["losses"][-1] < row["losses"][0] - 1e-3
    assert row["eval_losses"][-1] < row["eval_losses"][0] - 1e-3
    assert row["weights"]
    assert not [name for name in row["weights"] if "teacher" in name or "projections" in name]
