"""Prompts go in; the answers that a model writes to them come out, the prompts shared out over the ranks."""

from __future__ import annotations

import hashlib
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
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerationMode

from scaleup.artifacts.files import read_json, write_json, write_text
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
    """Is the folder, within the run folder, in which ranks hand their answers over as JSON lines."""
    together: bool = False
    """Tells whether all ranks make the same forward passes, as ranks must that gather weights for each of them."""
    keeps: bool = False
    """Tells whether answers stay in the folder, so that a run that goes on does not write them again: with the same
    model, and on as many processes."""

    @property
    def most_tokens(self) -> int | None:
        """Returns how many tokens a prompt may have, so that its answer has room in the model's positions; None where
        there is no bound."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is None or self.model.config.is_encoder_decoder:
            return None
        return max(1, positions - self.config.max_new_tokens - num_virtual_tokens(self.model))

    def answers(self, prompts: Sequence[Sequence[int]], phase: str) -> list[str]:
        """Returns the text that continues each prompt (token ids, at most `most_tokens`), in order, on every rank: the
        first one, where the config asks for several."""
        return [texts[0] for texts in self.sequences(prompts, phase)]

    def sequences(self, prompts: Sequence[Sequence[int]], phase: str) -> list[list[str]]:
        """Returns what `answers` does, but `num_return_sequences` texts a prompt. A text that is drawn depends on the
        seed, its number, that of its prompt, and the prompt."""
        runtime, each = self.runtime, self.config.num_return_sequences
        size = max(1, self.batch_size // each)
        most = len(prompts) + (-len(prompts) % runtime.world if self.together else 0)
        places = [min(place, len(prompts) - 1) for place in range(runtime.rank, most, runtime.world)]
        mine = sorted(places, key=lambda index: len(prompts[index]))
        parts = self.parts / _key(phase, prompts, self.config, runtime.world)
        file = parts / f"{runtime.rank}.jsonl"
        answers = _kept(file) if self.keeps else {}
        parts.mkdir(parents=True, exist_ok=True)
        write_text(file, _lines(answers))
        for start in range(0, len(mine), size):
            chosen = mine[start : start + size]
            if not answers.keys() >= set(chosen):
                texts = self._batch([prompts[index] for index in chosen], chosen)
                made = {index: texts[place * each : (place + 1) * each] for place, index in enumerate(chosen)}
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(_lines(made))
            runtime.progress.report(phase, start + len(chosen), len(mine))
        together = self._shared(parts)
        return [together[index] for index in range(len(prompts))]

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
        own.update(**asked_for(self.config))
        return own.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

    def _shared(self, parts: Path) -> dict[int, list[str]]:
        """Returns the answers of all ranks, by the number of the prompt."""
        runtime = self.runtime
        runtime.barrier()
        together: dict[int, list[str]] = {}
        for rank in range(runtime.world):
            together |= _kept(parts / f"{rank}.jsonl")
        runtime.barrier()
        if runtime.is_main and not self.keeps:
            shutil.rmtree(self.parts)
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
        settings = asked_for(config)
        if self._is_plain:
            settings["custom_generate"] = Decoder(self._chooser(numbers), together=self.together)
        if config.stop:
            ending = AnswerStops(self.tokenizer, config.stop, 1 if encoder else width)
            settings["stopping_criteria"] = StoppingCriteriaList([ending])
        with runtime.accelerator.autocast(), padding_known(is_padded):
            output = model.generate(
                **inputs,
                pad_token_id=pad_token_id(self.tokenizer),
                eos_token_id=self._ends or None,
                **settings,
            )
        rows = (output[:, 1:] if encoder else output[:, width:]).tolist()
        before = None if encoder else [prompt for prompt in prompts for _ in range(config.num_return_sequences)]
        return [before_stop(text, config.stop) for text in answer_texts(self.tokenizer, before, rows, self._ends)]

    def _chooser(self, numbers: Sequence[int]) -> Choose:
        config = self.config
        if config.temperature == 0:
            return likeliest
        seeds = [(config.seed, number, draw) for number in numbers for draw in range(config.num_return_sequences)]
        return GumbelMax.seeded(seeds, self.runtime.device)


def _key(phase: str, prompts: Sequence[Sequence[int]], config: GenerationConfig, world: int) -> str:
    """Returns the name of the folder that holds the answers of a model to these prompts."""
    said = json.dumps([phase, world, config.model_dump(mode="json"), [list(map(int, prompt)) for prompt in prompts]])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _kept(file: Path) -> dict[int, list[str]]:
    """Returns the answers of a file, by the number of the prompt. A last line that was cut off is none."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return dict(tuple(json.loads(line)) for line in lines if line.endswith("\n"))


def _lines(answers: dict[int, list[str]]) -> str:
    return "".join(json.dumps([number, texts]) + "\n" for number, texts in answers.items())


DRAWING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
"""Names the settings of draws, which are the config's alone: a model's own are meant for another temperature."""
OTHERS = (
    *("max_new_tokens", "min_new_tokens", "num_return_sequences", "num_beams", "length_penalty", "early_stopping"),
    *("repetition_penalty", "no_repeat_ngram_size"),
)


def asked_for(config: GenerationConfig) -> dict[str, Any]:
    """Returns the arguments of Transformers' `generate` that a config asks for; `stop` is not among them."""
    is_drawn = config.temperature > 0
    drawing = {name: getattr(config, name) if is_drawn else None for name in DRAWING}
    drawing["top_k"] = (config.top_k or 0) if is_drawn else None
    others = {name: value for name in OTHERS if (value := getattr(config, name)) is not None}
    return {"do_sample": is_drawn, **drawing, **others}


class AnswerStops(StopStringCriteria):
    """Ends an answer in which one of some texts has come. Transformers' own looks at the prompt's end too: a text that
    began there would end an answer that does not hold it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: list[str], width: int) -> None:
        super().__init__(tokenizer, stop)
        self.width = width
        """Counts the tokens before an answer."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Returns for each row of token ids (B, S) whether it has ended, bool (B,)."""
        return super().__call__(input_ids[:, self.width :], scores, **kwargs)


def before_stop(text: str, stop: Sequence[str] | None) -> str:
    """Returns an answer up to the first of the texts that end one."""
    return text[: min((place for each in stop or () if (place := text.find(each)) >= 0), default=len(text))]


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
