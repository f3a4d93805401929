"""A report says what manifest and log say, of runs in any state; and what models wrote is text on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.runs import report
from scaleup.runs.report import MAX_BYTES, read_subject, render, write_report
from tests.pages import Page
from tests.unit.runs.made import ended, made

EVIL = "<script>alert('x')</script>"
STEPS = [
    {"step": 1, "loss": 3.25, "tokens_per_second": 10.0, "num_tokens": 20, "memory_mib": 90.0},
    {"step": 2, "loss": 2.125, "tokens_per_second": 40.0, "num_tokens": 60, "memory_mib": 96.5},
    {"step": 2, "eval_loss": 1.5},
]


def page_of(run: RunFolder) -> Page:
    return Page(render(read_subject([str(run.path)])))


def write_samples(run: RunFolder, texts: list[str]) -> None:
    (run.path / "samples").mkdir()
    for step in (0, 8):
        rows = [{"prompt": text, "response": f"{text} {step}", "score": step / 4} for text in texts]
        (run.path / f"samples/rollout-{step:06d}.json").write_text(json.dumps(rows))


def write_spans(run: RunFolder, **groups: list[tuple[str, float, float]]) -> None:
    run.timelines.mkdir()
    for name, spans in groups.items():
        lines = [json.dumps({"what": what, "start": start, "end": end}) for what, start, end in spans]
        (run.timelines / f"{name}.jsonl").write_text("\n".join(lines))


def test_numbers_are_those_of_manifest_and_log(tmp_path: Path) -> None:
    run = ended(made(tmp_path, metrics=STEPS), "finished")
    page = page_of(run)
    metrics = read_json(run.manifest_file)["metrics"]
    assert metrics == {"train_loss": 2.0, "best_eval_loss": 1.5, "best_step": 2}
    for name, value in metrics.items():
        assert page.row(name) == [f"{value:g}"]
    assert page.row("loss") == ["2", "3.25", "2.125", "2.125", "3.25"]
    assert page.row("memory of the first process")[1] == "96.5 MiB"
    assert page.row("time of training")[1] == "3 s"  # 20 tokens at 10 a second, then 40 at 40
    assert page.row("steps")[1] == "4"
    for told in ("best_eval_loss 1.5", "finished", "25 tokens a second, median"):
        assert told in " ".join(page.text.split())


def test_groups_and_samples_of_a_run_of_rollouts(tmp_path: Path) -> None:
    run = ended(made(tmp_path), "finished")
    spans = [("generation", 0.0, 2.0), ("waiting for scores", 2.0, 3.0), ("training", 3.0, 4.0)]
    write_spans(run, policy=spans, reward=[("scoring", 2.0, 3.0)])
    write_samples(run, [f"prompt {number}" for number in range(30)])
    page = page_of(run)
    shares = {(cells[0], cells[1]): cells[2:] for cells in page.rows if len(cells) == 4 and cells[0] != "group"}
    assert shares == {
        ("policy", "generation"): ["2.0", "50%"],
        ("policy", "waiting for scores"): ["1.0", "25%"],
        ("policy", "training"): ["1.0", "25%"],
        ("policy", "nothing that is noted"): ["0.0", "0%"],
        ("reward", "scoring"): ["1.0", "25%"],
        ("reward", "nothing that is noted"): ["3.0", "75%"],
    }
    assert "12 of 30 held-out prompts" in page.text
    assert ["prompt 3", "prompt 3 0", "0.000", "prompt 3 8", "2.000"] in page.rows
    assert not any("prompt 12" in row for row in page.rows)


def test_what_runs_hold_is_text_on_the_page(tmp_path: Path) -> None:
    run = made(tmp_path, name=EVIL.replace("/", ":"), metrics=[{"step": 1, EVIL: 1.0}])
    write_samples(run, [EVIL, "\ud800 half a character"])
    ended(run, "failed", f"because {EVIL}")
    text = render(read_subject([str(run.path)]))
    page = Page(text)
    assert "script" not in {name for name, _ in page.tags}
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert any(EVIL in row[0] for row in page.rows)
    assert f"because {EVIL}" in page.text
    write_report(read_subject([str(run.path)]))


def test_passwords_stay_with_the_run(tmp_path: Path) -> None:
    run = ended(made(tmp_path), "finished")
    config = yaml.safe_load(run.config_file.read_text())
    config["data"]["train"] = [{"path": "https://me:hush@example.org/rows.jsonl"}]
    config["model"]["path"] = "https://me:hush@example.org/model"
    run.config_file.write_text(yaml.safe_dump(config))
    text = render(read_subject([str(run.path)]))
    assert "hush" not in text
    assert "example.org" in text


@pytest.mark.parametrize("kind", ["failed", "stopped"])
def test_a_run_that_has_not_finished_says_how_to_go_on(tmp_path: Path, kind: str) -> None:
    run = ended(made(tmp_path, metrics=STEPS), kind, "out of memory")
    page = page_of(run)
    assert page.row(f"scaleup run {run.config_file} --resume") == ["go on with it"]
    assert ("out of memory" in page.text) == (kind == "failed")


def test_a_page_stays_small_whatever_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"figure/{number}" for number in range(30)]
    lines = [{"step": step, **dict.fromkeys(names, step * 7919 % 1000)} for step in range(400)]
    run = ended(made(tmp_path, metrics=lines), "finished")
    write_samples(run, ["long " * 5000] * 30)
    write_spans(run, policy=[("training", float(start), start + 0.5) for start in range(2000)])
    subject = read_subject([str(run.path)])
    whole = render(subject)
    assert 300_000 < len(whole.encode()) < MAX_BYTES
    assert "more letters)" in whole
    monkeypatch.setattr(report, "MAX_BYTES", 150_000)  # as far more runs would be on one page
    few = render(subject)
    assert len(few.encode()) < 150_000
    assert "of 30 held-out prompts" in few


def test_the_page_lies_with_its_run(tmp_path: Path) -> None:
    run = ended(made(tmp_path), "finished")
    assert write_report(read_subject([str(run.path)])) == run.path / "report.html"
    other = tmp_path / "other.html"
    assert write_report(read_subject([str(run.path)], other)) == other
    assert "<main>" in other.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.html", "x"], "nothing is left beside them"


def pipeline(folder: Path) -> Path:
    """Of two runs: `second` is made from `first`."""
    first: dict[str, Any] = {
        "stage": "sft",
        "name": "first",
        "runs_dir": str(folder),
        "model": {"path": "builtin:tiny-llama"},
        "data": {"train": "rows.jsonl", "text": "{text}"},
    }
    second = {**first, "name": "second", "model": {"path": "${first}"}}
    file = folder / "chain.yaml"
    file.write_text(yaml.safe_dump({"pipeline": "chain", "runs": {"a": {"config": first}, "b": {"config": second}}}))
    return file


def test_a_pipeline_shows_each_of_its_runs(tmp_path: Path) -> None:
    file = pipeline(tmp_path)
    ended(made(tmp_path, "first", metrics=STEPS), "finished")
    subject = read_subject([str(file)])
    assert subject.file == tmp_path / "chain-report.html"
    page = Page(render(subject))
    assert page.row("a")[:2] == ["finished", "best_eval_loss 1.5"]
    assert page.row("b")[0] == "not started"
    assert page.row(f"scaleup run {file}") == ["make what is missing"]
    (picture,) = [each["aria-label"] for name, each in page.tags if each.get("class") == "wide"][:1]
    assert picture == "Runs of pipeline chain: a (sft, finished), b (sft, not started)"
    ended(made(tmp_path, "second"), "finished")
    assert Page(render(subject)).row("b")[0] == "finished"
    ids = [each["id"] for _, each in Page(render(subject)).tags if "id" in each]
    assert len(ids) == len(set(ids))


def test_a_pipeline_that_was_run_with_overrides(tmp_path: Path) -> None:
    ended(made(tmp_path, "third"), "finished")
    subject = read_subject([str(pipeline(tmp_path))], overrides=["a.name=third"])
    assert list(subject.runs.values()) == [tmp_path / "third", tmp_path / "second"]


def test_overrides_are_of_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match=r"^a\.name=third: overrides a run of a pipeline, and no pipeline is named"):
        read_subject([str(ended(made(tmp_path, "run"), "finished").path)], overrides=["a.name=third"])


def test_answers_with_other_ends_of_lines(tmp_path: Path) -> None:
    run = ended(made(tmp_path), "finished")
    (run.path / "generations.jsonl").write_text('{"id": 0, "prompt": "p", "completion": "one\u2028two"}\n')
    assert page_of(run).row("p") == ["one\u2028two"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [ended(made(tmp_path / name, "x"), "finished").path for name in ("one", "two")]
    subject = read_subject([*map(str, paths), str(paths[0])])
    assert list(subject.runs.values()) == paths
    assert subject.title == "2 runs"
    assert subject.file == Path("report.html")


def test_all_that_cannot_be_reported_is_refused_at_once(tmp_path: Path) -> None:
    never = made(tmp_path, "never")
    file = pipeline(tmp_path)
    run_file = tmp_path / "run.yaml"
    run_file.write_text("stage: sft")
    with pytest.raises(ScaleupError) as error:
        read_subject([str(never.path), str(file), str(run_file), str(tmp_path / "none")], tmp_path / "no/file.html")
    told = {problem.where: problem.what for problem in error.value.problems}
    assert told == {
        str(never.path): "is a run that was never started: there is nothing to report",
        str(file): "is a pipeline of which no run was ever started: there is nothing to report",
        str(run_file): "is no pipeline: it has no key `pipeline`",
        str(tmp_path / "none"): "is no run folder",
        "--output": f"there is no folder {tmp_path / 'no'}",
    }
    run = ended(made(tmp_path, "started"), "finished")
    with pytest.raises(ScaleupError, match="is a folder"):
        read_subject([str(run.path)], tmp_path)
    with pytest.raises(ScaleupError, match="is there, and is no page"):
        read_subject([str(file), str(run.path)], file)
    with pytest.raises(ScaleupError, match="is there, and is no page"):
        read_subject([str(run.path)], Path("/dev/null"))
    page = write_report(read_subject([str(run.path)], tmp_path / "page.html"))
    assert read_subject([str(run.path)], page).file == page, "a page is written over"


def test_an_evaluation_is_called_by_its_run(tmp_path: Path) -> None:
    run = ended(made(tmp_path), "finished")
    inner = ended(made(run.path / "evaluations", "1"), "finished")
    assert read_subject([str(inner.path)]).title == "x/evaluations/1"
