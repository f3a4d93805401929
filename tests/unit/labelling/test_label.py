"""A labelling goes on with what it began with, one session of a labeller at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.errors import ScaleupError
from scaleup.labelling.label import LabelOptions, label, show_labels
from scaleup.labelling.terminal import Ranking

HERE = LabelOptions("ann", in_terminal=True)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two models' answers; stdin has ended."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text(json.dumps({"prompt": "p", "completion": file.stem}) + "\n")
    end = (tmp_path / "end").open("w+")
    monkeypatch.setattr("sys.stdin", end)
    return files


def refusal(act: object, *arguments: object) -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        act(*arguments)  # type: ignore[operator]
    return [f"{problem.where} {problem.what}" for problem in caught.value.problems]


def test_a_labelling_goes_on_with_its_own_answers_and_seed(tmp_path: Path, answers: list[Path]) -> None:
    out, console = tmp_path / "out", Console()
    label(answers, out, LabelOptions("ann", seed=4, in_terminal=True), console)
    label(answers, out, HERE, console)
    label([out], None, HERE, console)
    seeded = LabelOptions("ann", seed=5, in_terminal=True)
    assert refusal(label, answers[::-1], out, seeded, console) == [
        "--seed is 5, but the labelling in " + f"{out} began with 4",
        f"{out} holds a labelling of other answers",
    ]
    assert refusal(label, [out], tmp_path / "else", HERE, console) == [
        f"--output is not {out}, which holds the labelling"
    ]
    (out / "items.json").write_text("{}")
    assert refusal(label, [out], None, HERE, console)[0].startswith(f"{out / 'items.json'} cannot be read: KeyError")
    assert refusal(show_labels, tmp_path, console) == [f"{tmp_path} holds no labelling: there is no items.json"]


def test_a_labeller_has_one_session_at_a_time(
    tmp_path: Path, answers: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []

    def meanwhile(*_: object) -> None:
        seen.append(refusal(label, [out], None, HERE, Console()))

    with monkeypatch.context() as patched:
        patched.setattr("scaleup.labelling.label.label_here", meanwhile)
        label(answers, out, HERE, Console())
    assert seen == [[f"--labeller 'ann' is labelling in {out} already"]]
    label([out], None, HERE, Console())
    (out / ".labels-ben.lock").mkdir()
    assert refusal(label, [out], None, LabelOptions("ben"), Console()) == [f"{out} cannot be written: Is a directory"]


@pytest.mark.parametrize(
    ("keys", "ranks"),
    [
        ("213", (2, 1, 3)),
        ("2=13", (1, 1, 2)),
        ("=3=1=2", (1, 1, 1)),
        (["3", "enter"], (2, 2, 1)),
        (["enter", "x", "4", "0", "3", "3", "1", "2"], (2, 3, 1)),
    ],
)
def test_keys_of_a_ranking(keys: list[str], ranks: tuple[int, ...]) -> None:
    ranking = Ranking((0, 0, 0))
    for key in keys:
        assert not ranking.is_whole
        ranking = ranking.after(key)
    assert ranking.is_whole and ranking.given == ranks
