"""What lies at a place that a config names: its files' names, sizes and contents, whatever the place is called."""

from __future__ import annotations

import shutil
from pathlib import Path

from scaleup.config.load import load_mapping
from scaleup.plan.places import mark_of, place_marks, value_at


def model(folder: Path, weights: bytes = b"weights") -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


def test_a_folder_is_what_it_holds(tmp_path: Path) -> None:
    before = mark_of(model(tmp_path / "a"))
    assert before is not None
    assert mark_of(model(tmp_path / "b")) == before
    assert mark_of(model(tmp_path / "c", b"weighty")) != before
    (tmp_path / "b/model.safetensors").rename(tmp_path / "b/adapter_model.safetensors")
    assert mark_of(str(tmp_path / "b")) != before


def test_large_files_are_known_by_a_few_blocks(tmp_path: Path) -> None:
    weights = bytes(range(256)) * (1 << 14)
    before = mark_of(model(tmp_path / "a", weights))
    assert mark_of(model(tmp_path / "b", weights)) == before
    assert mark_of(model(tmp_path / "c", weights[:-1] + b"x")) != before
    assert mark_of(model(tmp_path / "d", weights + b"x")) != before


def test_a_finished_run_is_its_model(tmp_path: Path) -> None:
    place = model(tmp_path / "run/model")
    (tmp_path / "run/manifest.json").write_text("{}")
    before = mark_of(str(tmp_path / "run"))
    assert before == mark_of(place)
    (tmp_path / "run/evaluations").mkdir()
    assert mark_of(str(tmp_path / "run")) == before


def test_a_function_is_its_file_and_its_name(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("a = b = len")
    before = mark_of(f"{tmp_path}/f.py:a")
    shutil.copy(tmp_path / "f.py", tmp_path / "g.py")
    assert mark_of(f"{tmp_path}/g.py:a") == before != mark_of(f"{tmp_path}/g.py:b")


def test_what_lies_nowhere_here_has_none(tmp_path: Path) -> None:
    for text in ("builtin:tiny-llama", "owner/name", "", str(tmp_path / "none"), f"{tmp_path}/none.py:f"):
        assert mark_of(text) is None


def test_of_a_config(tmp_path: Path) -> None:
    place = model(tmp_path / "m")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    raw = {
        "stage": "distill",
        "name": "x",
        "runs_dir": str(tmp_path),
        "model": {"path": "builtin:tiny-llama", "tokenizer": place},
        "teacher": {"path": place},
        "data": {"train": str(tmp_path / "rows.jsonl"), "text": "{text}"},
        "train": {"max_steps": 1},
    }
    config = load_mapping(raw).config
    assert config is not None
    assert place_marks(config) == dict.fromkeys(("model.tokenizer", "teacher.path"), mark_of(place))
    assert value_at(config, "teacher.path") == place
    assert value_at(config, "data.train.0.path") == str(tmp_path / "rows.jsonl")
    assert value_at(config, "train.max_steps") is None
