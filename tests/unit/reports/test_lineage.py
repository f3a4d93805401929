"""The tree of a run's making: its runs, models, rows, and what is stale."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.reports.lineage import ancestry, show_lineage, with_lineage
from tests.unit.studies.folders import finish, made, pipeline_of, write_rows

RUN = Path("runs/p-evaluation")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    made("base", "child", "evaluation")
    return tmp_path


def shown(run: Path) -> str:
    console = Console(file=io.StringIO(), width=60, markup=False, emoji=False, highlight=False)
    show_lineage(RunFolder(run.absolute()), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_tree_goes_down_to_models_and_rows(place: Path) -> None:
    lines = [line.partition(", finished")[0] for line in shown(RUN).splitlines()]
    assert lines[:3] == [
        f"{place / RUN}: evaluate",
        f"├── model.path: {place}/runs/p-child: sft",
        f"│   ├── model.path: {place}/runs/p-base: sft",
    ]
    assert "│   │   ├── model: builtin:tiny-llama" in lines
    assert any(line.startswith("│   │   ├── data.train.0: rows.jsonl, 3 rows, ") for line in lines)
    assert not any("stale" in line for line in lines)


def test_a_parent_that_was_made_again_makes_all_below_it_stale(place: Path) -> None:
    finish(pipeline_of().runs["base"], loss=1.0)
    root = ancestry(RunFolder(place / RUN))
    ((_, child),) = root.parents
    assert child.stale == (f"model.path: {place}/runs/p-base was made again",)
    assert root.stale == (f"model.path: {place}/runs/p-child is stale",)
    assert f"├── stale: model.path: {place}/runs/p-child is stale" in shown(RUN)


def test_a_parent_that_is_gone_is_told(place: Path) -> None:
    (place / "runs/p-base").rename(place / "runs/p-base.old-1")
    assert ancestry(RunFolder(place / "runs/p-child")).stale == (
        f"model.path: {place}/runs/p-base is gone or not finished",
    )


def test_a_run_of_an_earlier_version_has_the_parents_of_its_config(place: Path) -> None:
    run = RunFolder(place / "runs/p-child")
    manifest = json.loads(run.manifest_file.read_text())
    del manifest["lineage"]
    run.manifest_file.write_text(json.dumps(manifest))
    found = ancestry(run)
    assert [parent.run for _, parent in found.parents] == [f"{place}/runs/p-base"]
    assert (found.lineage, found.stale) == (None, ())
    assert "not recorded (by an earlier version)" in shown(run.path)


def test_as_json_it_is_the_manifests(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_lineage(RunFolder(place / RUN), Console(), as_json=True)
    tree = json.loads(capsys.readouterr().out)
    manifest = json.loads((place / RUN / "manifest.json").read_text())
    assert tree["lineage"] == manifest["lineage"]
    assert tree["parents"]["model.path"]["parents"]["model.path"]["models"] == {"model": "builtin:tiny-llama"}


@pytest.mark.parametrize(("name", "start"), [("tree.png", b"\x89PNG"), ("tree.svg", b"<?xml")])
def test_a_picture_is_drawn(place: Path, name: str, start: bytes) -> None:
    show_lineage(RunFolder(place / RUN), Console(file=io.StringIO()), output=place / name)
    picture = (place / name).read_bytes()
    assert picture.startswith(start)
    assert not name.endswith("svg") or all(label in picture for label in (b"p-base", b"p-child", b"p-evaluation"))


def test_a_model_card_carries_it(place: Path) -> None:
    run = RunFolder(place / "runs/p-child")
    card = with_lineage("# p-child\n", run)
    assert card.startswith("# p-child\n\n## Lineage\n\n")
    assert f"- model.path: `{place}/runs/p-base` (manifest " in card and "- data.train.0: rows.jsonl, 3 rows" in card
    run.lineage_file.unlink()
    run.manifest_file.unlink()
    assert with_lineage("# p-child\n", run) == "# p-child\n"
