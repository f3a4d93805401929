"""What each group did when."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.artifacts.timeline import Timeline, read_timelines


def test_what_is_noted_is_read_the_policy_first(tmp_path: Path) -> None:
    for group in ("generator", "policy"):
        timeline = Timeline(tmp_path / "timeline" / f"{group}.jsonl")
        with timeline.span("generation"):
            pass
        with pytest.raises(KeyError), timeline.span("training"):
            raise KeyError
    with (tmp_path / "timeline/policy.jsonl").open("a") as file:
        file.write('{"what": "trai')  # killed here
    timelines = read_timelines(tmp_path / "timeline")
    assert list(timelines) == ["policy", "generator"]
    for spans in timelines.values():
        assert [span.what for span in spans] == ["generation", "training"]
        assert all(span.start <= span.end for span in spans)


def test_what_is_not_to_be_noted_is_not(tmp_path: Path) -> None:
    with Timeline().span("training"):
        pass
    blocked = tmp_path / "blocked"
    blocked.write_text("a file in place of a folder")
    with Timeline(blocked / "policy.jsonl").span("training"):
        pass
    assert read_timelines(tmp_path / "timeline") == {}
