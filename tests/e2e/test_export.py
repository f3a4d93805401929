"""Train, export, read with plain Transformers: the folder is the model that was trained."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, BitsAndBytesConfig

from tests.cli import differing, scaleup
from tests.forked_runs import train
from tests.snippets import run_snippet

pytestmark = pytest.mark.covers("export")
LORA = {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
CONFIG: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {
        "train": "rows.jsonl",
        "test": "rows.jsonl",
        "prompt": "{word}:",
        "completion": " {answer}",
        "max_length": 64,
    },
    "adapter": LORA,
    "train": {"max_steps": 6, "learning_rate": 2e-2, "per_device_train_batch_size": 4},
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "full": {"adapter": None},
    "t5": {"model.path": "builtin:tiny-t5"},
    "8bit": {"quantization": "8bit"},
}
OVERRIDES = {"full": ("export.dtype=bfloat16",)}
QUICK = ("llama", "full")
"""Exported first: a quick suite does not wait for the others."""


@dataclass(frozen=True)
class Exported:
    run: Path
    shown: str

    @property
    def folder(self) -> Path:
        return self.run / "exports/1"

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())["metrics"]

    @property
    def auto(self) -> Any:
        seq2seq = "T5" in (self.folder / "model/config.json").read_text()
        return AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM


def marked() -> list[Any]:
    return [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in KINDS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    rows = [{"word": "ab" * (i % 5 + 1), "answer": "pq"[i % 2] * 3} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def exports(place: Path, pool: ThreadPoolExecutor) -> dict[str, Future[Exported]]:
    configs = {kind: differing(CONFIG | {"name": kind}, changes) for kind, changes in KINDS.items()}
    folders = train({kind: {k: v for k, v in config.items() if v} for kind, config in configs.items()}, place)

    def export(kind: str) -> Exported:
        result = scaleup("export", folders[kind], *OVERRIDES.get(kind, ()), cwd=place)
        assert result.code == 0, result.stderr
        return Exported(folders[kind], result.stdout)

    return {kind: pool.submit(export, kind) for kind in KINDS}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(4, 68).view(2, 32)
    more = {"decoder_input_ids": ids[:, 3:20]} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=ids, **more).logits.float()


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def base_of(exported: Exported, **options: Any) -> Any:
    settings = json.loads((exported.run / "model/adapter_config.json").read_text())
    return exported.auto.from_pretrained(settings["base_model_name_or_path"], **options)


@pytest.mark.parametrize("kind", [kind for kind in marked() if "full" not in kind.values])
def test_an_adapter_is_merged_into_its_unquantized_base(exports: dict[str, Future[Exported]], kind: str) -> None:
    done = exports[kind].result()
    again = logits(done.auto.from_pretrained(done.folder / "model"))
    base = base_of(done)
    plain = logits(base)
    true = logits(PeftModel.from_pretrained(base, done.run / "model"))
    print(f"{kind}: the adapter moves {off(true, plain):.1e}, the folder is off by {off(again, true):.1e}")
    assert off(true, plain) > 1e-2, "an adapter that does nothing would prove nothing"
    assert off(again, true) <= 1e-5
    assert done.metrics["merged"] <= 1e-5 and done.metrics["reloaded"] <= done.metrics["tolerance"] == 5e-4
    assert done.metrics["adapter"] > 1e-2
    assert (done.metrics["sequences"], done.metrics["rows"]) == (8, 4), "rows of the run's own data as well"
    for words in ("moved by merging it", "of the largest logit, at most 0.0005", "8 sequences, 4 of them rows"):
        assert words in done.shown


def test_the_program_of_the_page_on_deployment_reads_it(exports: dict[str, Future[Exported]]) -> None:
    printed = run_snippet("docs/deployment.md", 0, exports["llama"].result().folder / "model")
    assert printed.startswith("Review: what a film\nSentiment:")


@pytest.mark.slow
def test_how_far_it_is_from_a_quantized_training(exports: dict[str, Future[Exported]]) -> None:
    done = exports["8bit"].result()
    low = BitsAndBytesConfig(load_in_8bit=True)
    quantized = base_of(done, quantization_config=low, device_map={"": "cpu"})
    trained = logits(PeftModel.from_pretrained(quantized, done.run / "model"))
    far = off(trained, logits(done.auto.from_pretrained(done.folder / "model")))
    print(f"by hand {far:.1e}, as the result says {done.metrics['trained']:.1e}")
    assert far / 3 < done.metrics["trained"] < 3 * far, "on other inputs"
    assert done.metrics["trained"] > 100 * done.metrics["merged"]
    assert "from the base in 8bit that it was trained on" in done.shown
    assert "trained" not in exports["llama"].result().metrics


def test_a_whole_model_is_exported_as_it_is(exports: dict[str, Future[Exported]]) -> None:
    done = exports["full"].result()
    weights = load_file(done.run / "model/model.safetensors")
    written = load_file(done.folder / "model/model.safetensors")
    assert weights.keys() == written.keys()
    assert all(torch.equal(weight.to(torch.bfloat16), written[name]) for name, weight in weights.items())
    assert done.metrics["reloaded"] == 0 < done.metrics["rounded"] < 0.05
    assert "merged" not in done.metrics and "moved by rounding to bfloat16" in done.shown


@pytest.mark.parametrize("kind", marked())
def test_the_folder_is_whole(exports: dict[str, Future[Exported]], kind: str) -> None:
    done = exports[kind].result()
    names = {file.name for file in (done.folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert "adapter_config.json" not in names
    one, other = (AutoTokenizer.from_pretrained(place / "model") for place in (done.run, done.folder))
    assert one("some words") == other("some words")
    files = json.loads((done.folder / "manifest.json").read_text())["files"]
    assert files == {f"model/{name}": (done.folder / "model" / name).stat().st_size for name in names}
    card = (done.folder / "model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "| reloaded |" in card
    assert ("base_model:" in card) == (kind != "full")


def test_too_far_is_refused_and_leaves_nothing(exports: dict[str, Future[Exported]], place: Path) -> None:
    done = exports["llama"].result()
    result = scaleup("export", done.run, "export.tolerance=1e-12", "name=strict", cwd=place)
    assert result.code == 2
    assert "error: export.tolerance: merging the adapter moves logits by" in result.stderr
    strict = done.run / "exports/strict"
    assert (strict / "config.yaml").is_file()
    assert not (strict / "manifest.json").exists() and not list(strict.glob("*model*"))


@pytest.mark.slow
def test_an_export_is_a_model_to_evaluate(exports: dict[str, Future[Exported]], place: Path) -> None:
    """Beside what it was made of, which it equals."""
    done = exports["llama"].result()
    result = scaleup("evaluate", done.folder, cwd=place)
    assert result.code == 0, result.stderr
    found = json.loads((done.folder / "evaluations/1/metrics.json").read_text())
    assert found["model"]["rows"] == found["baseline"]["rows"] > 0
    assert found["model"]["loss"] == pytest.approx(found["baseline"]["loss"], abs=1e-5)
