"""This module takes prompts and returns generated texts, in batches, the prompts shared out over the ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.config.schema import GenerationConfig
from scaleup.data.collate import pad
from scaleup.distributed.runtime import Runtime
from scaleup.models.load import pad_token_id
from scaleup.models.soft_prompts import behind_prompt, num_prepended, num_virtual_tokens


def generate_answers(
    runtime: Runtime,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    batch_size: int,
    parts: Path,
    phase: str,
) -> list[str]:
    """Returns the decoded continuation of each prompt (token ids), in order, on every rank. Of a prompt that leaves no
    room for the answer in the model's positions, the end is taken.

    Ranks hand their answers over as JSON files under `parts`, which must lie in the run folder."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and not model.config.is_encoder_decoder:
        room = positions - config.max_new_tokens - num_virtual_tokens(model)
        prompts = [prompt[-max(1, room) :] for prompt in prompts]
    mine = sorted(range(runtime.rank, len(prompts), runtime.world), key=lambda index: len(prompts[index]))
    answers: dict[int, str] = {}
    for start in range(0, len(mine), batch_size):
        chosen = mine[start : start + batch_size]
        texts = _generate(runtime, model, tokenizer, [prompts[index] for index in chosen], config)
        answers.update(zip(chosen, texts, strict=True))
        runtime.progress.report(phase, start + len(chosen), len(mine))
    parts.mkdir(parents=True, exist_ok=True)
    (parts / f"{runtime.rank}.json").write_text(json.dumps(answers), encoding="utf-8")
    runtime.barrier()
    gathered: dict[str, str] = {}
    for rank in range(runtime.world):
        gathered |= json.loads((parts / f"{rank}.json").read_text(encoding="utf-8"))
    runtime.barrier()
    if runtime.is_main:
        shutil.rmtree(parts)
    runtime.barrier()  # the next call writes there again
    return [gathered[str(index)] for index in range(len(prompts))]


@torch.no_grad()
def _generate(
    runtime: Runtime,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
) -> list[str]:
    encoder = model.config.is_encoder_decoder
    ids, mask = pad(prompts, pad_token_id(tokenizer), left=not encoder)
    width = ids.shape[1]
    ids, mask = ids.to(runtime.device), mask.to(runtime.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if num_prepended(model):
        embeddings, mask = behind_prompt(model, ids, mask)
        model, inputs = model.get_base_model(), {"inputs_embeds": embeddings, "attention_mask": mask}
        width = 0  # without token ids, what is generated comes back alone
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if config.temperature > 0:
        sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    with runtime.accelerator.autocast():
        output = model.generate(
            **inputs,
            max_new_tokens=config.max_new_tokens,
            num_beams=config.num_beams,
            pad_token_id=pad_token_id(tokenizer),
            **sampling,
        )
    return tokenizer.batch_decode(output if encoder else output[:, width:], skip_special_tokens=True)
