"""A model goes in; its tiny twin comes out: a folder with a model of the same class and the same tokenizer, of few and
narrow layers, with random weights. `scaleup verify` trains it.

`python -m scaleup.describe.twin` reads {"models": {WHERE: {"model": {...}, "folder": "..."}}} from stdin, writes the
folders, and prints {"problems": [...]}. No weights of the model itself are read."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaleup.config.schema import ModelConfig
from scaleup.describe.shell import shell_of
from scaleup.errors import ScaleupError
from scaleup.models.builtin import say_untied, seeded
from scaleup.models.load import auto_class, first_line, quiet_libraries
from scaleup.streams import steady_streams

NUM_LAYERS, WIDTH, NUM_HEADS = 2, 64, 4
DEPTHS = frozenset(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
)
WIDTHS = frozenset(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"))
INNER = frozenset(
    (
        *("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
        *("moe_intermediate_size", "shared_expert_intermediate_size"),
    )
)
HEADS = frozenset(("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads", "decoder_attention_heads"))
GROUPS, HEAD_WIDTHS = frozenset(("num_key_value_heads",)), frozenset(("head_dim", "d_kv"))
EXPERTS = frozenset(("num_local_experts", "num_experts", "n_routed_experts"))
"""Name the settings that say how large a model is, as the families of Transformers call them."""
DROPOUTS = ("dropout", "pdrop")
"""Are in the names of settings that are set to 0: each rank draws masks of its own, so that no split is another."""


def twin_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a model's config that its twin has otherwise. What is small enough stays as it is."""
    heads = max((value for key, value in settings.items() if key in HEADS and isinstance(value, int)), default=1)
    tiny_heads = NUM_HEADS if heads >= NUM_HEADS else {1: 1}.get(heads, 2)
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "layer_types" and isinstance(value, list):
            changed[key] = value[:NUM_LAYERS]
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        elif any(part in key for part in DROPOUTS):
            changed[key] = type(value)(0)
        elif key in DEPTHS | INNER | EXPERTS:
            changed[key] = min(int(value), NUM_LAYERS if key in DEPTHS else 2 * WIDTH if key in INNER else NUM_HEADS)
        elif key in WIDTHS:
            changed[key] = WIDTH
        elif key in HEADS:
            changed[key] = tiny_heads
        elif key in GROUPS:
            changed[key] = tiny_heads if value == heads else max(1, tiny_heads // 2)
        elif key in HEAD_WIDTHS:
            changed[key] = WIDTH // tiny_heads
        elif key == "num_experts_per_tok":
            changed[key] = min(int(value), 2)
    return changed


def make_twin(model: ModelConfig, folder: Path, where: str = "model") -> None:
    """Write the twin of a model to a folder. Its weights follow from its config alone.

    Raises ScaleupError at `{where}.path` for a model that cannot be made small, and as `shell_of` does."""
    shell = shell_of(model.model_copy(update={"new_tokens": []}), where)
    settings = shell.config.to_dict()
    is_untied = shell.task == "seq2seq_lm" and _has_own_head(shell)
    try:
        config = type(shell.config).from_dict({**settings, **twin_settings(settings), "dtype": "float32"})
        twin = seeded(config, auto_class(shell.task), is_untied)
        twin.save_pretrained(folder)
    except Exception as error:  # configs of families that count otherwise raise what they like
        what = f"{model.path!r} ({shell.config.model_type}) cannot be made small: {first_line(error)}"
        raise ScaleupError.of(f"{where}.path", what, "verify a model of another family") from error
    shell.tokenizer.save_pretrained(folder)
    if config.model_type == "t5" and is_untied:
        say_untied(folder / "config.json")


def _has_own_head(shell: Any) -> bool:
    head = shell.model.get_output_embeddings()
    return head is not None and head.weight is not shell.model.get_input_embeddings().weight


def answer(request: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Make the twins that are asked for. Yield what is wrong with their models."""
    for where, each in request["models"].items():
        try:
            make_twin(ModelConfig.model_validate(each["model"]), Path(each["folder"]), where)
        except ScaleupError as error:
            yield from (asdict(problem) for problem in error.problems)


def main() -> None:
    """Answer stdin on stdout; whatever libraries print goes to stderr."""
    with steady_streams():
        with contextlib.redirect_stdout(sys.stderr):
            quiet_libraries()
            problems = list(answer(json.load(sys.stdin)))
        print(json.dumps({"problems": problems}), flush=True)


if __name__ == "__main__":
    gc.disable()  # as in scaleup.describe.answer
    main()
