"""An ONNX graph gives torch's logits, for batches that its trace never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from scaleup.compress.onnx import FILE, read_graph, write_graph
from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.models.classifier import classify
from scaleup.models.load import load_model
from scaleup.models.sources import materialize
from tests.cli import run

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
SHAPES = ((1, 2), (4, 21), (2, 100))


@pytest.mark.parametrize("name", ["tiny-bert-classifier", "tiny-llama"])
def test_logits_are_torchs(name: str, tmp_path: Path) -> None:
    """With a row that has no padding beside ones that have much: a decoder's score is at the last token of the row."""
    asked = ModelConfig(path=f"builtin:{name}", task="sequence_classification")
    facts = model_facts(asked)
    model = load_model(asked, facts).eval()
    write_graph(model, facts, tmp_path)
    assert read_graph(model, facts, tmp_path, 1e-5)["reloaded"] <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / FILE)
    for rows, length in SHAPES:
        ids = torch.randint(3, facts.vocab_size, (rows, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[1:, length // 2 :] = 0
        with torch.no_grad():
            true = classify(model, {"input_ids": ids, "attention_mask": mask})
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert torch.allclose(torch.from_numpy(found), true, atol=1e-5)
        ids[1:, length // 2 :] = 7
        (again,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert torch.allclose(torch.from_numpy(again), true, atol=1e-5), "what stands in the padding counts for nothing"


@pytest.mark.slow
def test_an_encoder_gives_its_states(tmp_path: Path) -> None:
    """From the command line, in a folder that says what the model is."""
    config = {
        "stage": "export",
        "name": "encoder",
        "model": {"path": "builtin:tiny-bert"},
        "export": {"format": "onnx"},
    }
    folder = run(config, cwd=tmp_path) / "model"
    true = AutoModel.from_pretrained(materialize("builtin:tiny-bert")).eval()
    session = onnxruntime.InferenceSession(folder / FILE)
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state"]
    ids = torch.randint(3, true.config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1:, 9:] = 0
    with torch.no_grad():
        states = true(input_ids=ids, attention_mask=mask).last_hidden_state
    (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert torch.allclose(torch.from_numpy(found), states, atol=1e-5)
    assert AutoConfig.from_pretrained(folder).architectures == ["BertModel"]
