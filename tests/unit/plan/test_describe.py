from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.data import DataConfig
from scaleup.config.schema import ModelConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan import describe
from scaleup.plan.describe import describe_models
from scaleup.plan.facts import ModelFacts, RowsRequest


class DataPlane:
    """Answers in place of `python -m scaleup.describe.answer`, and counts how often it was asked."""

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.asked: list[list[str]] = []
        self.problems: list[dict[str, str]] = []
        self.code = 0
        self.noise = ""
        self.printed = ""
        self.is_mute = False

    def run(self, command: list[str], input: str, **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:] == ["-m", "scaleup.describe.answer"]
        requests = json.loads(input)
        self.asked.append([request["where"] for request in requests])
        facts = [None if self.problems else self.facts.model_dump(mode="json") for _ in requests]
        notes = [["a note"] if request["rows"] else [] for request in requests]
        answer = json.dumps({"facts": facts, "notes": notes, "problems": self.problems})
        os.write(options["stderr"], self.printed.encode())
        return subprocess.CompletedProcess(command, self.code, stdout="" if self.is_mute else f"{self.noise}{answer}\n")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_text("weights")
    return tmp_path / "model"


@pytest.fixture
def data_plane(model: Path, facts: ModelFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataPlane:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plane = DataPlane(facts.model_copy(update={"location": str(model)}))
    monkeypatch.setattr(describe.subprocess, "run", plane.run)
    return plane


def ask(path: str | Path, **more: Any) -> ModelFacts:
    return describe_models({"model": ModelConfig(path=str(path), **more)}).facts["model"]


@pytest.mark.parametrize("path", ["", "builtin:tiny-llama", "package:pydantic"])
def test_a_local_model_is_asked_about_once(data_plane: DataPlane, model: Path, path: str) -> None:
    assert ask(path or model) == data_plane.facts
    assert ask(path or model) == data_plane.facts
    assert len(data_plane.asked) == 1


def test_a_changed_folder_is_asked_about_again(data_plane: DataPlane, model: Path) -> None:
    ask(model)
    (model / "model.safetensors").write_text("other weights")
    ask(model)
    (model / "tokenizer.json").touch()
    ask(model)
    ask(model)
    assert len(data_plane.asked) == 3


def test_a_changed_tokenizer_folder_is_asked_about_again(data_plane: DataPlane, model: Path, tmp_path: Path) -> None:
    """It may have got a chat template."""
    (tmp_path / "tokenizer").mkdir()
    ask(model, tokenizer=str(tmp_path / "tokenizer"))
    (tmp_path / "tokenizer/chat_template.jinja").touch()
    ask(model, tokenizer=str(tmp_path / "tokenizer"))
    ask(model, tokenizer=str(tmp_path / "tokenizer"))
    assert len(data_plane.asked) == 2


def test_an_upgraded_package_is_asked_about_again(data_plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("package:pydantic")
    monkeypatch.setattr(describe.metadata, "version", lambda name: "99")
    ask("package:pydantic")
    assert len(data_plane.asked) == 2


def test_a_finished_runs_model_is_watched(data_plane: DataPlane, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").touch()
    model.rename(run / "model")
    data_plane.facts = data_plane.facts.model_copy(update={"location": str(run / "model")})
    ask(run)
    (run / "metrics.jsonl").touch()
    ask(run)
    (run / "model/model.safetensors").write_text("trained further")
    ask(run)
    assert len(data_plane.asked) == 2


def test_another_setting_is_another_model(data_plane: DataPlane, model: Path) -> None:
    ask(model)
    ask(model, task="causal_lm")
    ask(model, trust_remote_code=True)
    assert len(data_plane.asked) == 3


@pytest.mark.parametrize("names", [{"path": "gpt2"}, {"path": "builtin:tiny-llama", "tokenizer": "gpt2"}])
def test_hub_names_are_asked_about_each_time(data_plane: DataPlane, names: dict[str, str]) -> None:
    """Their files may change without our seeing it."""
    for _ in range(2):
        ask(**names)
    assert len(data_plane.asked) == 2


def test_a_converted_model_that_is_gone_is_asked_about_again(data_plane: DataPlane, model: Path) -> None:
    ask("builtin:tiny-llama")
    (model / "config.json").unlink()
    ask("builtin:tiny-llama")
    assert len(data_plane.asked) == 2


def test_only_what_is_not_remembered_is_asked_about_in_one_go(data_plane: DataPlane, model: Path) -> None:
    ask(model)
    models = {"model": ModelConfig(path=str(model)), "baseline": ModelConfig(path="gpt2"), "c": ModelConfig(path="t5")}
    assert set(describe_models(models).facts) == set(models)
    assert data_plane.asked == [["model"], ["baseline", "c"]]


def test_a_broken_cache_costs_only_time(data_plane: DataPlane, model: Path, tmp_path: Path) -> None:
    ask(model)
    [file] = (tmp_path / "cache/scaleup/facts").iterdir()
    file.write_text('{"half": ')
    assert ask(model) == data_plane.facts
    file.write_text('{"location": "/of/another/version"}')
    assert ask(model) == data_plane.facts
    assert len(data_plane.asked) == 3


def test_a_cache_that_cannot_be_written_costs_only_time(
    data_plane: DataPlane, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ask(model) == ask(model)
    assert len(data_plane.asked) == 2


@pytest.mark.parametrize(
    "kinds", [{"splits": {"train": "completions"}}, {"splits": {}, "tokens": {"train": "prompts"}}]
)
def test_notes_on_rows_are_remembered_as_long_as_the_rows_are_the_same(
    data_plane: DataPlane, model: Path, tmp_path: Path, kinds: dict[str, Any]
) -> None:
    """Also where all that is known of them is how many are left out once they are tokens, as of plain text."""
    file = tmp_path / "rows.jsonl"
    data = DataConfig.model_validate({"root": str(tmp_path), "train": "rows.jsonl", "text": "{said}"})
    rows = RowsRequest.model_validate({"data": data, **kinds})
    for text, times_asked in (("a", 1), ("a", 1), ("other", 2)):
        if not file.exists() or text not in file.read_text():
            file.write_text(json.dumps({"said": text}) + "\n")
        described = describe_models({"model": ModelConfig(path=str(model))}, readers={"model": rows})
        assert described.notes == ("a note",)
        assert len(data_plane.asked) == times_asked


def test_problems_are_passed_on_and_not_remembered(data_plane: DataPlane, model: Path) -> None:
    data_plane.problems = [
        {"where": "model.path", "what": "is odd", "remedy": "mend it"},
        {"where": "model.task", "what": "is wrong", "remedy": ""},
    ]
    for _ in range(2):
        with pytest.raises(ScaleupError) as caught:
            ask(model)
        assert caught.value.problems == [Problem(**problem) for problem in data_plane.problems]
    assert len(data_plane.asked) == 2


def test_what_libraries_print_is_no_answer(data_plane: DataPlane, model: Path) -> None:
    data_plane.noise = "Welcome!\n{}\n"
    assert ask(model) == data_plane.facts


@pytest.mark.parametrize(
    ("code", "printed", "cause"),
    [
        (
            1,
            "a warning\nTraceback (most recent call last):\n  File x\nImportError: libx.so\nbye\n",
            "ImportError: libx.so",
        ),
        (-6, "terminate called\n  what():  std::bad_alloc\n", "ended by SIGABRT: what():  std::bad_alloc"),
        (-9, "", "ended by SIGKILL"),
        (0, "", "exit code 0"),
    ],
)
def test_a_crash_is_told_in_a_sentence(
    data_plane: DataPlane, model: Path, tmp_path: Path, code: int, printed: str, cause: str
) -> None:
    data_plane.code, data_plane.printed, data_plane.is_mute = code, printed, True
    with pytest.raises(ScaleupError) as caught:
        ask(model)
    log = tmp_path / "cache/scaleup/describe.log"
    [problem] = caught.value.problems
    assert (problem.where, problem.what) == ("model", f"looking at it failed: {cause}")
    more = f"; all that it said is in {log}" if printed else ""
    assert problem.remedy == f"see what `scaleup doctor` says of this machine{more}"
    assert log.read_text() == printed


def test_progress_is_shown_as_it_comes_and_the_rest_when_all_went_well(
    data_plane: DataPlane, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_plane.printed = "a warning\nchecking rows.jsonl:1\n"
    ask(model)
    assert capsys.readouterr().err == "checking rows.jsonl:1\na warning\n"


ANSWERING = """
import json, os, sys
facts = json.loads(sys.argv[1])
for line in sys.stdin:
    sys.stderr.write("a warning\\n")
    if "broken" in line:
        sys.exit("out of paper")
    print("Welcome!")
    print(json.dumps({"facts": [facts for _ in json.loads(line)], "notes": [[str(os.getpid())]], "problems": []}))
    sys.stdout.flush()
"""


@pytest.fixture
def answering(facts: ModelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program that answers line by line, and says which process it is, in the place of the data plane."""
    command = [sys.executable, "-c", ANSWERING, facts.model_dump_json()]
    monkeypatch.setattr(describe, "COMMAND", command)


@pytest.mark.usefixtures("answering")
def test_one_process_answers_many_questions(facts: ModelFacts, capsys: pytest.CaptureFixture[str]) -> None:
    with describe.Describer() as describer:
        answers = [list(describer.ask([{"where": name}])) for name in ("model", "teacher")]
    [[(one, first, [process])], [(other, second, [same])]] = answers
    assert (one, other, process) == ("model", "teacher", same)
    assert first == second == facts
    assert capsys.readouterr().err == "a warning\n" * 2


@pytest.mark.usefixtures("answering", "model")
def test_one_that_breaks_down_is_told_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with describe.Describer() as describer:
        with pytest.raises(ScaleupError, match="model: looking at it failed: out of paper"):
            list(describer.ask([{"where": "model", "model": "broken"}]))
        assert [where for where, *_ in describer.ask([{"where": "model"}])] == ["model"]
