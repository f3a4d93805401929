"""The planner's questions about models go in as JSON; facts and problems come out as JSON, from a process of its own.

`python -m scaleup.describe.answer` reads, from each line of stdin, a list of {"where": "model", "model": {...},
"micro_batch": {...} or null, "facts": {...} or null, "rows": {...} or null} and prints, as a line of stdout, {"facts":
[...], "notes": [...], "problems": [...]}: facts in the same order, null where there is a problem, and notes on the
rows. Facts that are known already are not looked for again. No weights are loaded."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleup.describe.model import model_facts
from scaleup.describe.shell import Shell, shell_of
from scaleup.errors import ScaleupError
from scaleup.models.load import enable_gradient_checkpointing, first_line, load_model, quiet_libraries
from scaleup.plan.facts import Arithmetic, Footprint, MicroBatch, ModelFacts, ModelRequest, RowsRequest
from scaleup.streams import steady_streams

if TYPE_CHECKING:
    from scaleup.describe.footprint import Timeline

FEW_LAYERS = 6
"""Bounds the layers of a model that is traced whole."""


def describe(model: ModelRequest, micro_batch: MicroBatch | None, where: str = "model") -> ModelFacts:
    """Return the model's facts, with the footprint of a micro-batch in each of its arithmetics if there is one to train
    on. If the architecture cannot be traced the facts say why.

    Raises ScaleupError as `model_facts` does."""
    shell = shell_of(model, where)
    facts = model_facts(model, where, shell)
    facts = facts.model_copy(update={"flaw": _flaw(model, facts, shell)})
    if model.prune is not None:
        from scaleup.describe.cut import cut_shell  # it needs torch, which is not imported before main() begins

        facts = facts.model_copy(update={"parts": cut_shell(shell, model.prune, f"{where}.path")})
    if micro_batch is None:
        return facts
    try:
        with _silent():
            footprints = tuple(footprint_of(model, shell, micro_batch, kind) for kind in micro_batch.arithmetics)
    except ScaleupError:
        return facts  # it cannot recompute activations: the worker says so, with the right key
    except Exception as error:  # an architecture may do anything at all with values that are not there
        return facts.model_copy(update={"untraced": f"{type(error).__name__}: {first_line(error)}"[:200]})
    return facts.model_copy(update={"footprints": footprints})


def _flaw(model: ModelRequest, facts: ModelFacts, shell: Shell) -> tuple[str, str] | None:
    """Load a folder's model without reading its weights: the headers of its files tell whether all of them are there.
    It may have none, where another machine is planned for."""
    is_plain = getattr(shell.config, "quantization_config", None) is None
    if not is_plain or not any(Path(facts.location).glob("*.safetensors")):
        return None
    try:
        with _silent(), contextlib.redirect_stderr(io.StringIO()):  # also what reports go to where they are captured
            load_model(model.model_copy(update={"attn_implementation": None}), facts, deferred=True)
    except ScaleupError as error:
        return error.problems[0].what, error.problems[0].remedy
    return None


def footprint_of(model: ModelRequest, shell: Shell, micro_batch: MicroBatch, arithmetic: Arithmetic) -> Footprint:
    """Trace a micro-batch on the whole model, or on two and three of its layers if there are many and all alike."""
    from scaleup.describe.footprint import at_depth, footprint, trace

    def traced(shallow: Shell) -> Timeline:
        whole = deepcopy(shallow.model)
        if micro_batch.gradient_checkpointing:  # the state of the random numbers needs values, and next to no space
            enable_gradient_checkpointing(whole, preserve_rng_state=False)
        return trace(whole, micro_batch, shell.task, arithmetic)

    layers = getattr(shell.config, "num_hidden_layers", 0)
    if layers > FEW_LAYERS and (pair := _shallow(model, shell, layers)):
        two, three = map(traced, pair)
        if len(two.moments) < len(three.moments) < 2 * len(two.moments):
            return footprint(arithmetic, at_depth(two, three, layers))
    return footprint(arithmetic, traced(shell))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what a trace prints off stderr: torch logs the traceback of whatever fails without values, and the facts say
    it in a sentence. The descriptor goes elsewhere: a log's handler keeps the stream that it was made with."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def _shallow(model: ModelRequest, shell: Shell, layers: int) -> list[Shell] | None:
    """Return the model with two and with three layers; None if its layers are not all alike."""
    kinds = getattr(shell.config, "layer_types", None) or ["all"]
    if shell.config.is_encoder_decoder or len(set(kinds)) > 1:
        return None
    made = []
    for count in (2, 3):
        config = deepcopy(shell.config)
        config.num_hidden_layers = count
        if getattr(config, "layer_types", None):
            config.layer_types = kinds[:count]
        try:
            made.append(shell_of(model.model_copy(update={"layers": None}), "model", config, shell.tokenizer))
        except ScaleupError:
            return None  # what an adapter names is in the other layers
    two, three, whole = (
        Counter((tuple(p.shape), p.requires_grad) for p in each.model.parameters()) for each in (*made, shell)
    )
    is_linear = all(whole[shape] == two[shape] + (layers - 2) * (three[shape] - two[shape]) for shape in whole | three)
    return made if is_linear else None


def answer(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts of each request, None if there is a problem, notes on its rows, and all problems."""
    answers: list[ModelFacts | None] = []
    notes: list[list[str]] = []
    problems: list[dict[str, str]] = []
    for request in requests:
        described: ModelFacts | None = None
        of_rows: list[str] = []
        try:
            described, of_rows = _answer(request)
        except ScaleupError as error:
            problems.extend(asdict(problem) for problem in error.problems)
        answers.append(described)
        notes.append(of_rows)
    return {"facts": [each and each.model_dump() for each in answers], "notes": notes, "problems": problems}


def _answer(request: dict[str, Any]) -> tuple[ModelFacts, list[str]]:
    model, where = ModelRequest.model_validate(request["model"]), request["where"]
    sizes, known, rows = (request.get(key) for key in ("micro_batch", "facts", "rows"))
    micro_batch = MicroBatch.model_validate(sizes) if sizes else None
    facts = ModelFacts.model_validate(known) if known else describe(model, micro_batch, where)
    if rows is None:
        return facts, []
    from scaleup.describe.in_context import check_room
    from scaleup.describe.rows import row_notes
    from scaleup.describe.tokens import token_notes

    request_of_rows = RowsRequest.model_validate(rows)
    check_room(model, facts, request_of_rows, where)
    notes = row_notes(model, facts, request_of_rows, where)
    return facts, [*notes, *token_notes(model, facts, request_of_rows, where)]


def main() -> None:
    """Answer each line of stdin on stdout; whatever libraries print goes to stderr."""
    with steady_streams():
        with contextlib.redirect_stdout(sys.stderr):
            quiet_libraries()
        for number, question in enumerate(sys.stdin):
            if number:
                gc.collect()  # what was traced for the question before lies in cycles
            with contextlib.redirect_stdout(sys.stderr):
                reply = answer(json.loads(question))
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    gc.disable()  # before torch is imported: a process this short spends a quarter of its time collecting, for nothing
    main()
