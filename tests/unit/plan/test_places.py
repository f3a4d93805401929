"""What lies at a place that a config names: its files' names, sizes and contents, whatever the place is called."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from scaleup.config.load import load_mapping
from scaleup.plan.places import change_of, marks_of, place_marks, value_at


def model(folder: Path, weights: bytes = b"weights") -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


def test_a_folder_is_what_it_holds(tmp_path: Path) -> None:
    before = marks_of(model(tmp_path / "a"))
    assert before is not None
    assert marks_of(model(tmp_path / "b")) == before
    assert marks_of(model(tmp_path / "c", b"weighty")) != before
    (tmp_path / "b/model.safetensors").rename(tmp_path / "b/adapter_model.safetensors")
    assert marks_of(str(tmp_path / "b")) != before


def test_large_files_are_known_by_a_few_blocks(tmp_path: Path) -> None:
    weights = bytes(range(256)) * (1 << 14)
    before = marks_of(model(tmp_path / "a", weights))
    assert marks_of(model(tmp_path / "b", weights)) == before
    assert marks_of(model(tmp_path / "c", weights[:-1] + b"x")) != before
    assert marks_of(model(tmp_path / "d", weights + b"x")) != before


def safetensors(file: Path, *tensors: bytes) -> None:
    """One layer after another, in the format's own layout."""
    ends = [sum(map(len, tensors[: number + 1])) for number in range(len(tensors))]
    header = {
        f"layers.{number}": {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [end - len(tensor), end]}
        for number, (tensor, end) in enumerate(zip(tensors, ends, strict=True))
    }
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors))


def test_of_large_weights_each_tensor_is_seen(tmp_path: Path) -> None:
    """Also one of many, which lies between the blocks of the file."""
    place, layers = model(tmp_path / "a"), [bytes(20_000) for _ in range(200)]
    safetensors(tmp_path / "a/model.safetensors", *layers)
    before = marks_of(place)
    assert before is not None
    for number in (1, 77, 150):
        trained = [b"\1" * len(each) if at == number else each for at, each in enumerate(layers)]
        safetensors(tmp_path / "a/model.safetensors", *trained)
        assert change_of(before, marks_of(place)) == "other contents of model.safetensors"


def test_neither_a_touch_nor_a_note_is_a_change(tmp_path: Path) -> None:
    before = marks_of(model(tmp_path / "a"))
    os.utime(tmp_path / "a/model.safetensors", (1, 1))
    (tmp_path / "a/README.md").write_text("trained on reviews")
    (tmp_path / "a/.DS_Store").touch()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert marks_of(str(tmp_path / "a")) == marks_of(str(tmp_path / "b")) == before


def test_an_adapter_is_known_with_its_base(tmp_path: Path) -> None:
    base, adapter = model(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    before = marks_of(str(adapter))
    assert before is not None
    (tmp_path / "base/model.safetensors").write_bytes(b"others")
    assert change_of(before, marks_of(str(adapter))) == "other contents of model.safetensors of the base"
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    assert marks_of(str(adapter)) is not None


def test_what_has_changed_is_said() -> None:
    before = {"a": "1", "b": "2", "c": "3"}
    assert change_of(before, dict(before)) is None
    assert change_of(before, None) == "it cannot be read now"
    assert change_of({"": "1"}, {"": "2"}) == "other contents"
    said = "other contents of a, without b, c, now with d, e, f and 1 more"
    assert change_of(before, {"a": "0", "d": "", "e": "", "f": "", "g": ""}) == said


def test_a_finished_run_is_its_model(tmp_path: Path) -> None:
    place = model(tmp_path / "run/model")
    (tmp_path / "run/manifest.json").write_text("{}")
    before = marks_of(str(tmp_path / "run"))
    assert before == marks_of(place)
    (tmp_path / "run/evaluations").mkdir()
    assert marks_of(str(tmp_path / "run")) == before


def test_a_function_is_its_file_and_its_name(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("a = b = len")
    before = marks_of(f"{tmp_path}/f.py:a")
    shutil.copy(tmp_path / "f.py", tmp_path / "g.py")
    assert marks_of(f"{tmp_path}/g.py:a") == before != marks_of(f"{tmp_path}/g.py:b")


def test_what_lies_nowhere_here_has_none(tmp_path: Path) -> None:
    for text in ("builtin:tiny-llama", "owner/name", "", str(tmp_path / "none"), f"{tmp_path}/none.py:f"):
        assert marks_of(text) is None


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
    assert place_marks(config) == dict.fromkeys(("model.tokenizer", "teacher.path"), marks_of(place))
    evaluation = {"toxicity_model": {"path": place}, "metrics": ["toxicity"]}
    measured = load_mapping({**raw, "evaluation": evaluation}).config
    assert measured is not None
    assert place_marks(measured) == place_marks(config), "what is measured afterwards may change"
    assert value_at(config, "teacher.path") == place
    assert value_at(config, "data.train.0.path") == str(tmp_path / "rows.jsonl")
    assert value_at(config, "train.max_steps") is None
