"""configs/prune/tiny.yaml through the command line: everything cut at once, the same on one process and on two, and a
result that later stages and plain Transformers take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.cli import differing, run, scaleup

pytestmark = pytest.mark.covers("prune")
CONFIG = Path(__file__).parent.parent.parent / "configs/prune/tiny.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    rows = [{"text": f"film {n} was {'good' * (n % 4)}", "label": ["negative", "positive"][n % 2]} for n in range(40)]
    for name in ("rows", "held"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def config(**changes: Any) -> dict[str, Any]:
    data = {"data.root": ".", "data.train": "rows.jsonl", "data.test": "held.jsonl"}
    return differing(yaml.safe_load(CONFIG.read_text(encoding="utf-8")), {**data, **changes})


@pytest.fixture(scope="module")
def pruned(place: Path) -> Path:
    return run(config(), cwd=place)


def test_what_it_says(pruned: Path) -> None:
    metrics = json.loads((pruned / "manifest.json").read_text())["metrics"]
    assert metrics["num_parameters_after"] < metrics["num_parameters_before"]
    assert (
        metrics["num_parameters_after"]
        == json.loads((pruned / "plan.json").read_text())["model"]["parts"]["num_parameters"]
    ), "the plan knew"
    assert metrics["zeros"] == 0.5 and "save no bytes" in metrics["note"]
    assert metrics["encoder_layers"] in ("0", "1") and metrics["decoder_layers"] in ("0", "1")
    assert metrics["reloaded"] <= 1e-4
    assert "save no bytes" in (pruned / "model/README.md").read_text()


def test_plain_transformers_loads_it(pruned: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(pruned / "model")
    sizes = ("num_layers", "num_decoder_layers", "d_ff", "num_heads", "d_kv")
    assert [getattr(model.config, key) for key in sizes] == [1, 1, 64, 2, 8]


@pytest.mark.slow
def test_one_process_cuts_the_same(pruned: Path, place: Path) -> None:
    alone = run(config(**{"parallel.num_processes": 1, "name": "alone"}), cwd=place)
    found, expected = (load_file(folder / "model/model.safetensors") for folder in (alone, pruned))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.slow
def test_its_run_is_a_model_for_others(pruned: Path, place: Path) -> None:
    """The evaluation finds before and after what the run found."""
    done = scaleup("evaluate", pruned, "parallel.num_processes=1", cwd=place)
    assert done.code == 0, done.stderr
    found = json.loads((pruned / "evaluations/1/metrics.json").read_text())
    metrics = json.loads((pruned / "manifest.json").read_text())["metrics"]
    for when, name in (("before", "baseline"), ("after", "model")):
        assert found[name]["loss"] == pytest.approx(metrics[f"loss_{when}"], rel=1e-5)
