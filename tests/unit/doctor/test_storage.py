"""The folder of runs, as it is found by writing to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.doctor.finding import Finding
from scaleup.doctor.storage import Need, clock_finding, existing, space_finding, storage_findings

GIB = 2**30


def rows(folder: Path, need: Need | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in storage_findings(folder, need)}


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    found = rows(tmp_path / "a" / "runs", Need(checkpoint=1000, kept=3, model=1000))
    assert {finding.level for finding in found.values()} == {"ok"}
    assert f"made in {tmp_path}" in found["runs_dir"].what
    assert "estimate: 3 checkpoints of 1.0 KiB" in found["disk space"].what
    assert "MiB/s" in found["write speed"].what and "a checkpoint takes" in found["write speed"].what
    assert list(tmp_path.iterdir()) == [], "nothing is made, nothing is left"


def test_a_folder_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    found = rows(tmp_path / "rows.jsonl" / "runs")
    assert list(found) == ["runs_dir"]
    assert found["runs_dir"].level == "fail" and "rows.jsonl is no folder" in found["runs_dir"].what


def test_a_folder_that_nobody_can_write() -> None:
    found = rows(Path("/proc/runs"))
    assert (
        found["runs_dir"].level == "fail"
        and "/proc/runs cannot be written: /proc: No such file" in found["runs_dir"].what
    )


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to("/nonexistent/runs")
    found = rows(tmp_path / "runs")
    assert list(found) == ["runs_dir"]
    assert found["runs_dir"].level == "fail" and "is a link to /nonexistent/runs" in found["runs_dir"].what


def test_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == existing(tmp_path) == tmp_path


@pytest.mark.parametrize(("free", "level"), [(39 * GIB, "fail"), (50 * GIB, "warn"), (61 * GIB, "ok")])
def test_space_for_checkpoints(free: int, level: str) -> None:
    found = space_finding(Path("/runs"), free, Need(checkpoint=12 * GIB, kept=3, model=4 * GIB))
    assert found.level == level and "about 40.0 GiB" in found.what


@pytest.mark.parametrize(
    ("skew", "level"), [(0.0, "ok"), (-1.9, "ok"), (2.1, "warn"), (-59.0, "warn"), (61.0, "fail"), (-7200.0, "fail")]
)
def test_clocks(skew: float, level: str) -> None:
    found = clock_finding("clock", "the file system is", skew)
    assert found.level == level
    if level != "ok":
        assert ("ahead of" if skew > 0 else "behind") in found.what and f"{abs(skew):,.1f} s" in found.what
