"""This module takes a sequence classifier or an encoder, writes one ONNX graph of free batch and sequence, and compares
it with the model itself."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from scaleup.compress.probes import SEED, difference
from scaleup.errors import ScaleupError
from scaleup.models.classifier import classify, is_sequence_classifier
from scaleup.models.load import first_line
from scaleup.plan.facts import ModelFacts

FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
SHAPES = ((1, 1), (1, 9), (3, 16), (5, 33))
"""Holds rows and tokens of the batches that are compared; rows are shorter one by one, and padded on the right."""
MOST_INLINE = 2**30
"""Bounds the bytes of weights within the graph's own file, which protobuf limits to 2 GiB; more are written beside
it."""


class Scores(torch.nn.Module):
    """Computes a classifier's graph: input_ids and attention_mask (B, S) -> logits (B, L), as `classify` reads them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return classify(self.model, {"input_ids": input_ids, "attention_mask": attention_mask})


class States(torch.nn.Module):
    """Computes an encoder's graph: input_ids and attention_mask (B, S) -> its last hidden states (B, S, H), float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states.float()


def graph_of(model: Any) -> tuple[torch.nn.Module, str]:
    """Returns the module to trace, and the name of its output."""
    return (Scores(model), "logits") if is_sequence_classifier(model) else (States(model), "last_hidden_state")


def write_graph(model: Any, facts: ModelFacts, folder: Path) -> None:
    """Writes a model's graph to `folder`. Raises ScaleupError for an architecture that cannot be traced."""
    ids, mask = padded(facts, 2, 8)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    graph, output = graph_of(model.eval())
    size = sum(parameter.nbytes for parameter in model.parameters())
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (ids, mask),
                folder / FILE,
                dynamo=True,
                input_names=INPUTS,
                output_names=(output,),
                dynamic_shapes=(free, free),
                external_data=size > MOST_INLINE,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        what = f"{facts.architecture} cannot be written as ONNX: {first_line(error)}"
        raise ScaleupError.of("export.format", what, "use its folder as it is: Transformers loads it") from error


@torch.no_grad()
def read_graph(model: Any, facts: ModelFacts, folder: Path, tolerance: float) -> dict[str, Any]:
    """Returns how far ONNX Runtime's logits or states are from the model's, as a share of the largest, over batches of
    several sizes.

    Raises ScaleupError where that is more than `tolerance`, or where ONNX Runtime does not take a shape."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    graph, output = graph_of(model)
    outputs, true = [], []
    for rows, length in SHAPES:
        ids, mask = padded(facts, rows, min(length, facts.max_positions or length))
        true.append(graph(ids, mask))
        try:
            (result,) = session.run(None, dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True)))
        except Exception as error:  # onnxruntime's own errors share no base class
            what = f"ONNX Runtime does not take {rows} rows of {length} tokens: {first_line(error)}"
            raise ScaleupError.of("export.format", what, "report this: the graph is not free in its shape") from error
        outputs.append(torch.from_numpy(result))
    moved = difference(outputs, true)
    if not moved <= tolerance:
        what = (
            f"ONNX Runtime moves {output} by {moved:.1e} of the largest, more than {tolerance:g}: nothing was exported"
        )
        raise ScaleupError.of("export.tolerance", what, "raise it if that is near enough")
    return {"reloaded": moved, "batches": len(SHAPES)}


def padded(facts: ModelFacts, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns drawn ids and their mask (rows, length), the same each time: each row a token shorter than the one before
    it."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(facts.vocab_size, (rows, length), generator=generator)
    lengths = (length - torch.arange(rows)).clamp(min=1)
    return ids, (torch.arange(length) < lengths[:, None]).long()
