"""A distillation from the command line: the offered config, with a student of fewer layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli import losses, run

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.covers("distill")
@pytest.mark.timeout(400)
def test_the_tiny_config_leaves_a_student(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"film {number}", "label": "good"}) + "\n" for number in range(60)]
    (tmp_path / "data/reviews").mkdir(parents=True)
    for name, part in (("train", rows[:40]), ("validation", rows[40:50]), ("test", rows[50:])):
        (tmp_path / f"data/reviews/{name}.jsonl").write_text("".join(part), encoding="utf-8")
    config = yaml.safe_load((REPOSITORY / "configs/distill/tiny.yaml").read_text(encoding="utf-8"))
    folder = run(config, "train.max_steps=6", "train.eval_steps=3", "distill.student_layers=[1]", cwd=tmp_path)
    found = losses(folder)
    assert len(found) == 6 and found[6] < found[1]
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["models"]["teacher"]["architecture"] == "Qwen2ForCausalLM"
    assert plan["model"]["layers"] == {"decoder": [1]} or list(plan["model"]["layers"].values()) == [[1]]

    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert student.config.model_type == "llama" and len(student.model.layers) == 1
    names = {path.name for path in (folder / "model").iterdir()}
    assert "README.md" in names and "tokenizer.json" in names


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_writes(tmp_path: Path) -> None:
    """Greedy answers of plain Transformers, to prompts of two sources; held-out rows have answers of their own."""
    for name, count in (("one", 6), ("two", 4), ("held", 3)):
        answer = {"say": "nothing"} if name == "held" else {}
        rows = [{"ask": f"{name} film {number}", **answer} for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "stage": "distill",
        "name": "written",
        "model": {"path": "builtin:tiny-llama"},
        "teacher": {"path": "builtin:tiny-qwen2"},
        "distill": {"mode": "sequence", "alpha": 0.5, "generation": {"max_new_tokens": 6}},
        "data": {
            "train": [{"path": "one.jsonl", "weight": 2}, "two.jsonl"],
            "validation": "held.jsonl",
            "prompt": "{question}:",
            "completion": " {say}",
            "columns": {"question": "ask"},
            "max_length": 48,
        },
        "train": {"max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 2},
        "parallel": {"strategy": "ddp", "num_processes": 2},
    }
    folder = run(config, cwd=tmp_path)
    assert len(losses(folder)) == 3

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scaleup.models.sources import materialize

    place = materialize("builtin:tiny-qwen2")
    teacher, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    for number, (name, count) in enumerate((("one", 6), ("two", 4))):
        lines = (folder / f"teacher/{number}.jsonl").read_text(encoding="utf-8").splitlines()
        written = {row["prompt"]: row["completion"] for row in map(json.loads, lines)}
        assert written, "the teacher says something"
        for row in range(count):
            prompt = f"{name} film {row}:"
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            answer = teacher.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            said = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
            assert written.get(prompt, "") == (said if said.strip() else "")
