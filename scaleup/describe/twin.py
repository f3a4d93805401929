"""A model goes in; its tiny twin comes out: a folder with a model of the same class and the same tokenizer, of few and
narrow layers, with random weights. `scaleup verify` trains it.

`python -m scaleup.describe.twin` reads {"models": [{"where": KEY, "model": {...}, "folder": "...", "dropout": 0.0}]}
from stdin, writes the folders, and prints {"problems": [...]}. No weights of the model itself are read."""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaleup.artifacts.classifier_files import REWARD_FILE
from scaleup.config.schema import ModelConfig
from scaleup.describe.shell import is_classifier, shell_of
from scaleup.errors import ScaleupError
from scaleup.models.builtin import say_untied, seeded
from scaleup.models.load import auto_class, first_line, quiet_libraries
from scaleup.plan.facts import ModelRequest
from scaleup.streams import steady_streams

NUM_LAYERS, WIDTH, NUM_HEADS, NUM_EXPERTS = 2, 64, 2, 4
"""Are the sizes of a twin. Heads are 32 wide: vLLM's attention on CPUs has none of 16."""
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
"""Are in the names of the settings of dropout, which is 0 in a twin, as each rank draws masks of its own, but for runs
that are to draw the same masks."""


def twin_settings(settings: dict[str, Any], dropout: float = 0.0) -> dict[str, Any]:
    """Returns the settings of a model's config that its twin has otherwise. What is small enough stays as it is."""
    heads = max((value for key, value in settings.items() if key in HEADS and isinstance(value, int)), default=1)
    tiny_heads = min(heads, NUM_HEADS)
    changed: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "layer_types" and isinstance(value, list):
            changed[key] = value[:NUM_LAYERS]
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        elif any(part in key for part in DROPOUTS):
            changed[key] = dropout
        elif key in DEPTHS | INNER | EXPERTS:
            changed[key] = min(int(value), NUM_LAYERS if key in DEPTHS else 2 * WIDTH if key in INNER else NUM_EXPERTS)
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


def make_twin(model: ModelConfig, folder: Path, where: str = "model", dropout: float = 0.0) -> None:
    """Write the twin of a model to a folder. Its weights follow from its config alone.

    Raises ScaleupError at `{where}.path` for a model that cannot be made small, and as `shell_of` does."""
    import transformers

    asked = ModelRequest(**{**model.model_dump(), "new_tokens": [], "task": "auto"}, takes_encoders=True)
    shell = shell_of(asked, where)
    settings = shell.config.to_dict()
    is_untied = shell.task == "seq2seq_lm" and _has_own_head(shell)
    is_headless = shell.task == "sequence_classification" and not is_classifier(shell.config) and not shell.adapter
    try:
        config = type(shell.config).from_dict({**settings, **twin_settings(settings, dropout), "dtype": "float32"})
        twin = seeded(config, transformers.AutoModel if is_headless else auto_class(shell.task), is_untied)
        twin.save_pretrained(folder)
    except Exception as error:  # configs of families that count otherwise raise what they like
        what = f"{model.path!r} ({shell.config.model_type}) cannot be made small: {first_line(error)}"
        raise ScaleupError.of(f"{where}.path", what, "verify a model of another family") from error
    shell.tokenizer.save_pretrained(folder)
    beside = (shell.adapter or Path(shell.location)) / REWARD_FILE
    if beside.is_file():
        shutil.copy(beside, folder)
    if config.model_type == "t5" and is_untied:
        say_untied(folder / "config.json")


def _has_own_head(shell: Any) -> bool:
    head = shell.model.get_output_embeddings()
    return head is not None and head.weight is not shell.model.get_input_embeddings().weight


def answer(request: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Make the twins that are asked for. Yield what is wrong with their models."""
    for each in request["models"]:
        model, folder = ModelConfig.model_validate(each["model"]), Path(each["folder"])
        try:
            make_twin(model, folder, each["where"], each["dropout"])
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
