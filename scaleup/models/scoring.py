"""This module turns texts into token ids and those into scores: the same in training, evaluation and PPO, whatever the
batch, padding and order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scaleup.artifacts.classifier_files import SavedReward, read_reward
from scaleup.config.data import ClassProblem
from scaleup.config.schema import ScorerConfig
from scaleup.data.chat import ChatTemplate
from scaleup.data.collate import pad
from scaleup.data.text import TextEncoder
from scaleup.data.tokenizer_mark import tokenizer_mark
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import Pooling, classify
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.models.quantized import COMPUTE
from scaleup.plan.facts import ModelFacts
from scaleup.records.chats import Chat, Message
from scaleup.records.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOTH = "{prompt}{response}"
"""Is the template of a prompt and a response where no other is configured."""

Scored = tuple[str, str] | tuple[Chat, Sequence[Message]]
"""Holds a prompt and a response: two texts, or a conversation and the messages that follow it."""


@dataclass(frozen=True)
class Reader:
    """Turns prompts and responses into the rows of token ids that a reward model reads."""

    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    template: str = BOTH
    max_length: int = 512

    @property
    def pad_id(self) -> int:
        """Returns the id to fill batches with. Masks tell padding, but encoder-decoders count eos tokens: any other
        will do."""
        pad, eos = pad_token_id(self.tokenizer), self.tokenizer.eos_token_id
        return int(eos == 0) if self.pooling == "eos" and pad == eos else pad

    @property
    def filler_id(self) -> int:
        """Returns a token that makes a row by itself."""
        return int(self.tokenizer.eos_token_id) if self.pooling == "eos" else self.pad_id

    def recipe(self) -> dict[str, Any]:
        """Returns what the ids of a text follow from."""
        ways = {"pooling": self.pooling, "template": self.template, "max_length": self.max_length}
        return {"tokenizer": tokenizer_mark(self.tokenizer), **ways}

    def __getstate__(self) -> dict[str, Any]:  # without what is made when it is needed, which cannot all be pickled
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def reads_chats(self) -> bool:
        """Tells whether conversations are read through the tokenizer's own chat template: it has one, and no other text
        is configured."""
        return bool(self.tokenizer.chat_template) and self.template == BOTH

    def ids(self, pairs: Sequence[Scored]) -> list[list[int]]:
        """Returns the token ids of prompts with their responses, whole. Texts have the tokenizer's special tokens,
        conversations those of its chat template, up to the one that ends the last turn: a line break behind it says
        nothing of the response. Rows of models that read the score at the end have one eos there; in an
        encoder-decoder's there is no other.

        Raises ScaleupError at data.messages for what the chat template refuses."""
        template = Template(self.template)
        texts = [template.render({"prompt": p, "response": r}) for p, r in pairs if isinstance(p, str)]
        chats = [_whole(p, r) for p, r in pairs if isinstance(p, Chat) and not isinstance(r, str)]
        of_texts = iter(self._text.ended(texts))
        of_chats = iter(self._text.encode([self._chat.whole(chat).rstrip("\n") for chat in chats], special=False))
        return [self.ended(next(of_texts if isinstance(prompt, str) else of_chats)) for prompt, _ in pairs]

    def cut(self, ids: list[int]) -> list[int]:
        """Returns at most `max_length` tokens: the special ones that the row begins with, and the last ones."""
        return self._text.ending(ids, self.max_length)

    def batch(self, rows: Sequence[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
        """Returns input_ids and attention_mask (B, S) of rows, padded on the right."""
        ids, mask = pad(rows, self.pad_id)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def ended(self, ids: list[int]) -> list[int]:
        """Returns ids as every row ends: with one eos token, where the score is read from it."""
        eos = self.tokenizer.eos_token_id
        if self.pooling == "eos":
            return [*(token for token in ids if token != eos), eos]
        if self.pooling == "last" and eos is not None and ids[-1:] != [eos]:
            return [*ids, eos]
        return ids or [self.filler_id]

    @cached_property
    def _text(self) -> TextEncoder:
        return TextEncoder(self.tokenizer)

    @cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)


def _whole(prompt: Chat, response: Sequence[Message]) -> Chat:
    return replace(prompt, messages=[*prompt.messages, *response])


@dataclass
class Scorer:
    """Scores texts with a classifier. `model` may be replaced by what a strategy makes of it."""

    model: Any
    reader: Reader
    device: torch.device
    batch_size: int = 16
    label: int = 0
    """Is the index of the logit that is the score."""
    as_probability: bool = False
    """Tells whether a score is the label's probability, and not the logit."""
    problem: ClassProblem | None = None
    """Tells what the logits are: of labels of which a text may have several, or of a single one, a probability is the
    sigmoid; else it is the softmax over the labels."""
    mean: float = 0.0
    std: float = 1.0
    compute: torch.dtype = torch.float32
    """Is the dtype in which products are computed."""

    @torch.no_grad()
    def score(self, pairs: Sequence[Scored]) -> list[float]:
        """Returns a score for each (prompt, response), in order: (score - mean) / std.

        Where the model is sharded over ranks, all of them must call it together with equally many pairs, and none with
        an empty list: a rank that has fewer repeats one of its own and leaves out its scores."""
        rows = [self.reader.cut(ids) for ids in self.reader.ids(pairs)] if pairs else []
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        scores = [0.0] * len(rows)
        self.model.eval()
        for first in range(0, len(order), self.batch_size):
            places = order[first : first + self.batch_size]
            with torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32):
                logits = classify(self.model, self.reader.batch([rows[place] for place in places], self.device))
            for place, value in zip(places, self._unnormalized(logits).tolist(), strict=True):
                scores[place] = (value - self.mean) / self.std
        return scores

    def _unnormalized(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.as_probability:
            return logits[:, self.label]
        alone = logits.shape[1] == 1 or self.problem == "multi_label"
        return (logits.sigmoid() if alone else logits.softmax(dim=1))[:, self.label]


def load_scorer(config: ScorerConfig, facts: ModelFacts, device: torch.device, deferred: bool = False) -> Scorer:
    """Loads the scorer of a finished reward run, of an adapter of one, or of any sequence classifier, as `config` says;
    its problems have been looked for (plan/scorers.py). Mean and std of a run are those of its logits: probabilities
    stay as they are. If `deferred`, an engine prepares its model.

    Raises ScaleupError as loading does."""
    assert facts.pooling is not None, "the plan has looked at the model"
    model = load_finished(config.model, facts, config.quantization, config.mixed_precision, device, deferred)
    saved = saved_reward(facts) or SavedReward()
    tokenizer = load_tokenizer(config.model, facts.tokenizer_at, "reward.model")
    template, limit = config.template or saved.template, config.max_length or saved.max_length
    longest = min(limit, facts.max_positions or limit)
    normalizes = config.normalize and config.score == saved.score
    return Scorer(
        model,
        Reader(tokenizer, facts.pooling, template, longest),
        device,
        config.batch_size,
        label=facts.classes.index(config.label) if config.label and facts.classes else 0,
        as_probability=config.score == "probability",
        problem=facts.problem,
        mean=saved.mean if normalizes else 0.0,
        std=saved.std if normalizes else 1.0,
        compute=COMPUTE[config.mixed_precision],
    )


def saved_reward(facts: ModelFacts) -> SavedReward | None:
    """Returns what a reward run wrote beside its model; None for any other model."""
    return read_reward(Path(facts.adapter or facts.location))
