"""Prompts go in; the answers that a model writes to them come out, the prompts shared out over the ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import GenerationMode

from scaleup.artifacts.files import read_json, write_json
from scaleup.config.schema import GenerationConfig
from scaleup.data.chat import answer_ends
from scaleup.data.collate import has_padding, pad
from scaleup.data.text import TextEncoder
from scaleup.distributed.runtime import Runtime
from scaleup.models.adapters import SETTINGS
from scaleup.models.beside import base_of
from scaleup.models.decode import Choose, Decoder, likeliest
from scaleup.models.gumbel import GumbelMax
from scaleup.models.load import pad_token_id
from scaleup.models.padding import padding_known
from scaleup.models.soft_prompts import behind_prompt, num_prepended, num_virtual_tokens


@dataclass(frozen=True)
class Generator:
    """Answers prompts with one model. Every rank must have one and make the same calls."""

    runtime: Runtime
    model: Any
    tokenizer: PreTrainedTokenizerBase
    config: GenerationConfig
    batch_size: int
    parts: Path
    """Is the folder, within the run folder, in which ranks hand their answers over as JSON files."""
    seed: int = 0
    """Seeds what is drawn at a temperature: an answer depends on this, the number of its prompt and the prompt."""

    def answers(self, prompts: Sequence[Sequence[int]], phase: str) -> list[str]:
        """Returns the text that continues each prompt (token ids), in order, on every rank. Of a prompt that leaves no
        room for the answer in the model's positions, the end is taken, behind the special tokens that it begins
        with."""
        runtime, model = self.runtime, self.model
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and not model.config.is_encoder_decoder:
            room = positions - self.config.max_new_tokens - num_virtual_tokens(model)
            text = TextEncoder(self.tokenizer)
            prompts = [text.ending(prompt, max(1, room)) for prompt in prompts]
        mine = sorted(range(runtime.rank, len(prompts), runtime.world), key=lambda index: len(prompts[index]))
        answers: dict[int, str] = {}
        for start in range(0, len(mine), self.batch_size):
            chosen = mine[start : start + self.batch_size]
            answers.update(zip(chosen, self._batch([prompts[index] for index in chosen], chosen), strict=True))
            runtime.progress.report(phase, start + len(chosen), len(mine))
        together = self._shared(answers)
        return [together[str(index)] for index in range(len(prompts))]

    @cached_property
    def _ends(self) -> list[int]:
        return answer_ends(self.tokenizer, self.model)

    @cached_property
    def _is_plain(self) -> bool:
        """Returns whether a token is chosen a step. What else the model's own settings or the config may ask for, such
        as a beam search, is Transformers'."""
        own = deepcopy(base_of(self.model).generation_config)
        if own is None:
            return self.config.num_beams == 1
        own.update(num_beams=self.config.num_beams, do_sample=self.config.temperature > 0)
        return own.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

    def _shared(self, answers: dict[int, str]) -> dict[str, str]:
        """Returns the answers of all ranks, by the number of the prompt."""
        runtime, parts = self.runtime, self.parts
        parts.mkdir(parents=True, exist_ok=True)
        (parts / f"{runtime.rank}.json").write_text(json.dumps(answers), encoding="utf-8")
        runtime.barrier()
        together: dict[str, str] = {}
        for rank in range(runtime.world):
            together |= json.loads((parts / f"{rank}.json").read_text(encoding="utf-8"))
        runtime.barrier()
        if runtime.is_main:
            shutil.rmtree(parts)
        runtime.barrier()  # the next call writes there again
        return together

    @torch.no_grad()
    def _batch(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[str]:
        runtime, model, config = self.runtime, self.model, self.config
        encoder = model.config.is_encoder_decoder
        ids, mask = pad(prompts, pad_token_id(self.tokenizer), left=not encoder)
        width = ids.shape[1]
        is_padded = has_padding(mask)
        ids, mask = ids.to(runtime.device), mask.to(runtime.device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if num_prepended(model):
            embeddings, mask = behind_prompt(model, ids, mask)
            model, inputs = model.get_base_model(), {"inputs_embeds": embeddings, "attention_mask": mask}
            width = 0  # without token ids, what is generated comes back alone
        settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        choose: Choose = likeliest
        if config.temperature > 0:
            settings = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
            choose = GumbelMax.seeded([(self.seed, number) for number in numbers], runtime.device)
        if self._is_plain:
            settings["custom_generate"] = Decoder(choose)
        with runtime.accelerator.autocast(), padding_known(is_padded):
            output = model.generate(
                **inputs,
                max_new_tokens=config.max_new_tokens,
                num_beams=config.num_beams,
                pad_token_id=pad_token_id(self.tokenizer),
                eos_token_id=self._ends or None,
                **settings,
            )
        rows = (output[:, 1:] if encoder else output[:, width:]).tolist()
        return answer_texts(self.tokenizer, None if encoder else prompts, rows, self._ends)


def answer_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]] | None,
    answers: Iterable[Sequence[int]],
    ends: Collection[int],
) -> list[str]:
    """Returns the text of each answer (token ids), up to the first of the tokens that end one. `prompts` (token ids)
    are those that they continue; None where they stand alone, as an encoder-decoder model's do."""
    whole = [list(takewhile(lambda token: token not in ends, answer)) for answer in answers]
    if prompts is None:
        return list(tokenizer.batch_decode(whole, skip_special_tokens=True))
    return TextEncoder(tokenizer).answers(prompts, whole)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer beside a saved model or adapter, and what ends an answer into the generation config there,
    so that Transformers and what reads its files stop there too. Models that do not generate have none."""
    tokenizer.save_pretrained(str(folder))
    if not (folder / SETTINGS).is_file():
        return
    settings = read_json(folder / SETTINGS)
    own = settings.get("eos_token_id")
    ends = {*answer_ends(tokenizer), *(own if isinstance(own, list) else [own])} - {None}
    if ends:
        settings["eos_token_id"] = min(ends) if len(ends) == 1 else sorted(ends)
        settings.pop("_from_model_config", None)  # else Transformers may take what the model's config says
    write_json(folder / SETTINGS, settings)
