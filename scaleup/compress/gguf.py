"""This module takes a merged causal model and writes one file for llama.cpp: its own converter writes it, and its own
server reads it again for comparison."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.compress.probes import Probe
from scaleup.config.stages.export import ExportSettings
from scaleup.errors import ScaleupError
from scaleup.models.llama_cpp import served
from scaleup.plan.model_path import CONVERTER_FILE, converter_folder
from scaleup.plan.model_path import GGUF_FILE as FILE

PROMPTS = (
    "The year 2024 had 366 days, and",
    "It's\n\n  a   café — isn't it?\n\tYes,",
    "def add(a, b):\n    return",
    "1,000,000 ≈ 10⁶.",
)
"""Holds digits, contractions, spaces, line ends and letters beyond ASCII: what tokenizers cut text by."""
END_SLOTS = ("eot", "eom")
"""Holds GGUF's names for tokens that end an answer beside eos: of a turn, and of a message."""
F16_MARGIN = 2e-3
"""Bounds how far below the best logit, as a share of the largest, llama.cpp's choice may lie: its products of 16-bit
weights round their input to 16 bits as well. docs/design/export.md says what was measured."""


def write_gguf(merged: Path, settings: ExportSettings, folder: Path, name: str, more_ends: Sequence[int] = ()) -> None:
    """Converts the Hugging Face folder `merged` to one file in `folder`, which calls its model `name`. `more_ends`:
    tokens that end an answer beside the tokenizer's eos; llama.cpp stops at two of them.

    Raises ScaleupError with the converter's own reason."""
    script = converter_folder(settings.converter) / CONVERTER_FILE
    command = [sys.executable, str(script), str(merged), "--outtype", settings.gguf_type, "--model-name", name]
    # a worker's PYTHONSAFEPATH would hide the modules beside the converter from it
    offline = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    offline |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "--outfile", str(folder / FILE)], capture_output=True, text=True, check=False, env=offline
    )
    if done.returncode or not (folder / FILE).is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        what = f"llama.cpp's converter does not take this model: {lines[-1].strip()}"
        raise ScaleupError.of("export.format", what, "use safetensors")
    if more_ends:
        name_ends(folder / FILE, more_ends)


def name_ends(file: Path, ends: Sequence[int]) -> None:
    """Names the tokens that end a turn or a message in a file: the converter writes eos alone, and llama.cpp knows
    others only by the names that some models give them."""
    named = [part for slot, end in zip(END_SLOTS, ends, strict=False) for part in ("--special-token-by-id", slot, end)]
    aside = file.with_suffix(".named")
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", *map(str, named), str(file), str(aside)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not aside.is_file():
        raise ScaleupError.of("export.format", f"the tokens that end an answer cannot be named: {done.stderr[-200:]}")
    aside.replace(file)


def prompts_of(rows: Sequence[Probe], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns the texts to continue: `PROMPTS`, and the first halves of rows."""
    halves = [row["input_ids"][0][: row["input_ids"].shape[1] // 2 + 1] for row in rows]
    return [*PROMPTS, *(str(tokenizer.decode(half)) for half in halves)]


def read_gguf(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Probe], settings: ExportSettings, folder: Path
) -> dict[str, Any]:
    """Returns metrics that compare the model with the written file, token by token along llama.cpp's greedy text:
    whether its choice is the model's own, and if not, how far below the best logit for the same text it is, as a share
    of the largest. A near tie falls either way by rounding, and changes what comes after it: both models continue the
    same text each time, so one such position says nothing of the next.

    Raises ScaleupError where texts become other tokens, and for f16 where rounding cannot explain a choice."""
    prompts = prompts_of(rows, tokenizer)
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    longest = max(map(len, ids)) + settings.max_new_tokens
    total, same, worst, first = 0, 0, 0.0, None
    with served(folder / FILE, max(256, longest), torch.get_num_threads()) as llama:
        for prompt, own in zip(prompts, ids, strict=True):
            _check_tokens(prompt, own, llama.tokens(prompt))
            chosen = llama.continued(own, settings.max_new_tokens)
            for place, (token, best, gap) in enumerate(_logit_gaps(model, own, chosen)):
                total, same, worst = total + 1, same + (token == best), max(worst, gap)
                if token != best and first is None:
                    words = [repr(tokenizer.decode([choice])) for choice in (token, best)]
                    first = f"{prompt!r}, token {place + 1}: {words[0]}, not {words[1]}, {gap:.1e} below it"
    if not total:
        raise ScaleupError.of("export.format", "llama.cpp continued none of the texts it was given", "report this")
    if settings.gguf_type == "f16" and not worst <= F16_MARGIN:
        what = f"llama.cpp chooses other tokens by more than rounding ({F16_MARGIN:g}): after {first}"
        raise ScaleupError.of("export.format", what, "use safetensors, and report this")
    return {
        "prompts": len(prompts),
        "tokens": total,
        "agreement": same / total,
        "largest_gap": worst,
        "first_difference": first,
    }


def _check_tokens(prompt: str, own: list[int], read: list[int]) -> None:
    if own == read:
        return
    place = next(
        (i for i, pair in enumerate(zip(own, read, strict=False)) if pair[0] != pair[1]), min(len(own), len(read))
    )
    what = f"llama.cpp reads {prompt!r} as other tokens, from the {place + 1}. on: {read[place : place + 3]}"
    what += f", not {own[place : place + 3]}"
    raise ScaleupError.of("export.format", what, "use safetensors: the converter mistakes this tokenizer for another")


@torch.no_grad()
def _logit_gaps(model: Any, prompt: list[int], chosen: list[int]) -> Iterator[tuple[int, int, float]]:
    """Yields for each chosen token: itself, the model's own choice after the same text, and how far below that its
    logit is, as a share of the largest."""
    if not chosen:
        return
    whole = torch.tensor([prompt + chosen[:-1]], device=model.device)
    logits = model.eval()(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 :].float()
    largest = logits.abs().max()
    for row, token in zip(logits, chosen, strict=True):
        best = int(row.argmax())
        yield token, best, float((row[best] - row[token]) / largest)
