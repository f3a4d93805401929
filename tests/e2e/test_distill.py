"""A distillation from the command line: the offered config, with a student of fewer layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli import losses, run

REPOSITORY = Path(__file__).parent.parent.parent


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
    assert plan["teacher"]["architecture"] == "Qwen2ForCausalLM"
    assert plan["model"]["layers"] == {"decoder": [1]} or list(plan["model"]["layers"].values()) == [[1]]

    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert student.config.model_type == "llama" and len(student.model.layers) == 1
    names = {path.name for path in (folder / "model").iterdir()}
    assert "README.md" in names and "tokenizer.json" in names
