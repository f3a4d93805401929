"""A run whose folder is moved and renamed goes on there, bit by bit like one that stayed; so does a distillation whose
teacher left files in the folder. Nothing of it is made again in the old place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, folder_of, largest_weight_difference, losses
from tests.forked_runs import Leg, live
from tests.small_runs import SFT, write_rows

pytestmark = pytest.mark.slow

DISTILL = differing(SFT, {"stage": "distill", "teacher": {"path": "builtin:tiny-qwen2"}})
RUNS: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "cached": differing(DISTILL, {"distill": {"cache": {"top_k": 4}}}),
    "written": differing(DISTILL, {"distill": {"mode": "sequence", "generation": {"max_new_tokens": 6}}}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of runs that were moved under way, and of others that were not."""
    place = tmp_path_factory.mktemp("moved")
    write_rows(place)
    begun = {name: differing(config, {"name": name, "train.save_steps": 1}) for name, config in RUNS.items()}
    straight = {f"{name}-straight": differing(config, {"name": f"{name}-straight"}) for name, config in RUNS.items()}
    live({name: [Leg(config, kill_after=2)] for name, config in begun.items()}, place)
    (place / "disk").mkdir()
    for name, config in begun.items():
        folder_of(config, place).rename(place / "disk" / f"{name}-moved")
    moved = {name: differing(config, {"runs_dir": "disk", "name": f"{name}-moved"}) for name, config in begun.items()}
    first_steps = live({name: [Leg(config)] for name, config in (moved | straight).items()}, place)
    assert all(first_steps[name][0] > 1 for name in RUNS)
    return place


@pytest.mark.parametrize("name", RUNS)
def test_goes_on_where_it_is(place: Path, name: str) -> None:
    moved, straight = place / "disk" / f"{name}-moved", place / "runs" / f"{name}-straight"
    assert losses(moved) == losses(straight)
    assert largest_weight_difference(moved, straight) == 0
    assert not (place / "runs" / name).exists()
    assert (moved / "teacher").exists() == (name != "sft")
