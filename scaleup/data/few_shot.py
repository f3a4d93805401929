"""Prompts go in; prompts behind examples come out (in-context learning, Brown et al. 2020). The examples are rows of
data.train, chosen by number or drawn: which ones follows from the seed and the number of the prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from scaleup.config.data import DataConfig, FewShotConfig
from scaleup.data.sources import read_examples, read_prompts, read_source
from scaleup.data.tokenization import last_answer, opening
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, Opening, PromptCompletion, example_maker, row_problem

KEY = "data.few_shot"
ALIKE = "give both the same format"
SPARE = 8
"""Counts the rows that are drawn beside those needed: those with the prompt's own words are left out."""
Shown = PromptCompletion | Chat


@dataclass(frozen=True)
class _Row:
    """Is a row that may be an example. One phrasing of an instruction template is that of the prompt: its index chooses
    it."""

    where: str
    values: Mapping[str, Any]
    make: Callable[[Mapping[str, Any], int], Example]

    def example(self, index: int) -> Shown:
        """Returns the row as an example before a prompt with an index in its source."""
        try:
            made = self.make(self.values, index)
        except ScaleupError as error:
            raise ScaleupError(row_problem(self.where, error)) from None
        return _shown(made)


def few_shot(data: DataConfig) -> FewShot | None:
    """Reads the rows that examples are taken from; returns None where no prompt gets any. Raises ScaleupError for too
    few rows."""
    settings = data.few_shot
    if settings is None or settings.count == 0:
        return None
    rows = [
        _Row(where, values, make)
        for source in data.train or []
        for make in [example_maker(data, source)]
        for where, values in read_source(data, source, "train")
    ]
    if settings.indices is not None and (most := max(settings.indices)) >= len(rows):
        raise ScaleupError.of(f"{KEY}.indices", f"there is no row {most}: data.train has {len(rows)}", "count from 0")
    if settings.count > len(rows):
        what = f"{settings.count} are more than the {len(rows)} rows of data.train"
        raise ScaleupError.of(f"{KEY}.num_examples", what, "use fewer")
    return FewShot(settings, rows)


def asked_rows(
    data: DataConfig, split: str, with_completions: bool, most: int | None = None
) -> list[Example | Opening]:
    """Reads the rows of a split that a model is asked, at most so many, each behind the examples that `data.few_shot`
    asks for. Raises ScaleupError for rows that cannot be used."""
    shots, rows = few_shot(data), list[Example | Opening]()
    for source in getattr(data, split) or []:
        if with_completions:
            made = read_examples(data, source, split)
            rows += [shots.before(_shown(row), index) for index, row in enumerate(made)] if shots else made
        else:
            prompts = read_prompts(data, source, split)
            rows += [Opening(shots.before_prompt(row, at) if shots else row) for at, row in enumerate(prompts)]
    return rows[:most]


def asked_prompts(data: DataConfig, prompts: Sequence[str]) -> list[str | Chat]:
    """Returns prompts of a config as `asked_rows` does rows."""
    shots = few_shot(data)
    return [shots.before_prompt(prompt, at) if shots else prompt for at, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class FewShot:
    """Puts examples before prompts."""

    settings: FewShotConfig
    rows: Sequence[_Row]

    def before_prompt(self, prompt: str | Chat, index: int) -> str | Chat:
        """Returns a prompt, the one of this index in its source, behind its examples.

        Raises ScaleupError where a chosen example is the prompt itself, where too few are left, and for texts before a
        conversation or the other way round."""
        if isinstance(prompt, Chat):
            return _later(prompt, self._examples(prompt, index))
        return self._texts(prompt, index) + prompt

    def before(self, example: Shown, index: int) -> Shown:
        """Returns a row behind its examples, of which nothing is learned. Raises ScaleupError as `before_prompt`."""
        if isinstance(example, Chat):
            return _later(example, self._examples(opening(example), index))
        return replace(example, prompt=self._texts(example.prompt, index) + example.prompt)

    def _texts(self, prompt: str, index: int) -> str:
        texts = []
        for each in self._examples(prompt, index):
            if isinstance(each, Chat):
                raise ScaleupError.of(KEY, "the examples are conversations, and the prompt is a text", ALIKE)
            texts.append(f"{each.prompt}{each.completion}{self.settings.separator}")
        return "".join(texts)

    def _examples(self, prompt: str | Chat, index: int) -> list[Shown]:
        settings = self.settings
        if settings.indices is not None:
            chosen = [self.rows[number].example(index) for number in settings.indices]
            for number, example in zip(settings.indices, chosen, strict=True):
                if _prompt_of(example) == prompt:
                    what = f"row {number} of data.train is asked itself"
                    raise ScaleupError.of(f"{KEY}.indices", what, "name another row")
            return chosen
        drawn: list[Shown] = []
        rng = np.random.default_rng([settings.seed, index])
        for number in self._drawn(rng):
            if _prompt_of(example := self.rows[number].example(index)) != prompt:
                drawn.append(example)
            if len(drawn) == settings.count:
                return [drawn[place] for place in rng.permutation(len(drawn))]
        what = f"data.train has not {settings.count} rows that are not the prompt itself"
        raise ScaleupError.of(f"{KEY}.num_examples", what, "use fewer")

    def _drawn(self, rng: np.random.Generator) -> list[int]:
        """Returns the numbers of rows in the order in which they are taken: more than are needed, if there are, since
        some may be the prompt itself."""
        count = 2 * self.settings.count + SPARE
        if not self.settings.balanced:
            return _some(rng, range(len(self.rows)), count)
        by_completion = self._by_completion
        groups = [_some(rng, by_completion[at], count) for at in rng.permutation(len(by_completion))[:count]]
        turns = range(max(map(len, groups)))
        return [group[turn] for turn in turns for group in groups if turn < len(group)]

    @cached_property
    def _by_completion(self) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            groups.setdefault(_completion_of(row.example(0)), []).append(number)
        return list(groups.values())


def _shown(example: Example) -> Shown:
    assert isinstance(example, PromptCompletion | Chat), "the plan refuses plain text"
    return example


def _some(rng: np.random.Generator, numbers: Sequence[int], count: int) -> list[int]:
    return [numbers[at] for at in rng.choice(len(numbers), size=min(count, len(numbers)), replace=False)]


def _prompt_of(example: Shown) -> str | Chat:
    return opening(example) if isinstance(example, Chat) else example.prompt


def _completion_of(example: Shown) -> str:
    if isinstance(example, Chat):
        return str(example.messages[last_answer(example)].get("content"))
    return example.completion


def _later(chat: Chat, examples: Sequence[Shown]) -> Chat:
    """Returns a conversation in which the examples are turns before its own, behind what its system message says."""
    turns: list[Any] = []
    for each in examples:
        if not isinstance(each, Chat):
            raise ScaleupError.of(KEY, "the examples are texts, and the prompt is a conversation", ALIKE)
        turns += each.messages[_num_first(each) : last_answer(each) + 1]
    first = _num_first(chat)
    messages = [*chat.messages[:first], *turns, *chat.messages[first:]]
    moved = [
        frozenset(at + len(turns) if at >= first else at for at in places) for places in (chat.unlearned, chat.given)
    ]
    answers = {first + at for at, message in enumerate(turns) if message["role"] == "assistant"}
    return replace(chat, messages=messages, unlearned=moved[0], given=moved[1] | answers)


def _num_first(chat: Chat) -> int:
    """Counts the messages before the first of the user or the assistant."""
    roles = [message["role"] for message in chat.messages]
    return next((at for at, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
