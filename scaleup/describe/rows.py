"""A model's tokenizer and the data section of a config go in; what the tokenizer and its chat template make of the rows
comes out: every row that the template refuses, with its place, and notes on what is not as one would think.

The code that makes the training's tokens makes these: what is said here is what will be learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from scaleup.config.data import SourceConfig
from scaleup.config.schema import ModelConfig
from scaleup.data.chat import answer_ends
from scaleup.data.marks import Rendered
from scaleup.data.rendering import SlowTemplate
from scaleup.data.sources import read_source
from scaleup.data.tokenization import IGNORE, Encoder, opening, own_template
from scaleup.describe.given import Given
from scaleup.describe.progress import Progress, shown_progress
from scaleup.errors import Problem, ScaleupError
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts, RowsRequest, is_reward_model
from scaleup.records.chat_templates import KEY
from scaleup.records.chats import REASONING_KEYS, Chat, Message
from scaleup.records.check import NUM_ROWS_LISTED, NUM_STREAMED_ROWS, maker_of, more_failing
from scaleup.records.examples import PromptCompletion, UnpairedPreference, row_problem
from scaleup.records.formats import local_path
from scaleup.records.preferences import Preferences

NUM_LAST = 3
"""Learned tokens among which an end must be: line breaks may stand behind it."""
NUM_TOKENIZED = 200
"""Rows of a source that are tokenized to see where a prompt ends: the row format decides that, not the row."""


def row_notes(model: ModelConfig, facts: ModelFacts, rows: RowsRequest, where: str) -> list[str]:
    """Return notes on the rows of local sources. Hub datasets are not downloaded for this.

    Nothing spans the end of a prompt where an encoder-decoder model reads prompt and completion apart, or where a
    preference is read as one text from which nothing is generated: there is no border in it.

    Raises ScaleupError with every row that the chat template refuses, up to five of a source and how many more."""
    tokenizer = load_tokenizer(model, facts.tokenizer_at, where)
    if facts.task == "seq2seq_lm":
        return []
    is_reward = is_reward_model(where)
    if is_reward and not tokenizer.chat_template:
        return []  # it reads the policy's text
    read_with = own_template(tokenizer, rows.data) if rows.by_own_template else rows.data
    if is_reward:  # also where data names one of its templates
        read_with = read_with.model_copy(update={"chat_template": None})
    encoder = Encoder(tokenizer, facts.task, read_with.model_copy(update={"too_long": "truncate"}))
    reads_alone = rows.by_own_template and read_with.chat_template is None
    problems: list[Problem] = []
    notes: list[str] = []
    with shown_progress() as progress:
        for split, needs in rows.splits.items():
            for place, source in enumerate(getattr(rows.data, split) or []):
                if (path := local_path(rows.data, source, split)) is None:
                    continue
                look = _Look(encoder, rows, f"data.{split}.{place}", progress)
                look.at(source, split, needs, is_reward)
                problems += [_of_tokenizer(each, where) if reads_alone else each for each in look.problems(str(path))]
                notes += look.notes()
    if problems:
        raise ScaleupError(list(dict.fromkeys(problems)))
    return list(dict.fromkeys(notes))


@dataclass(frozen=True)
class _Sampled:
    """Holds a row that is tokenized, and what the template made of it."""

    where: str
    example: PromptCompletion | Chat
    rendered: Rendered | None = None


class _Look:
    """Counts what one source's rows are like."""

    def __init__(self, encoder: Encoder, rows: RowsRequest, key: str, progress: Progress) -> None:
        self._encoder, self._progress, self._where = encoder, progress, ""
        self._data, self._max_rows, self._key, self._tokens = rows.data, rows.max_rows, key, rows.tokens
        self._is_counted = False
        self._failing: list[Problem] = []
        self._counts: Counter[str] = Counter()
        self._sample: list[_Sampled] = []
        self._given = Given()

    def at(self, source: SourceConfig, split: str, needs: str, is_reward: bool) -> None:
        """Look at every row; a reward model reads prompts with an answer."""
        make = maker_of(self._data, source, needs == "prompts")
        self._is_counted = split in self._tokens
        assert make is not None, "the format has been looked at"
        limit = self._max_rows or (NUM_STREAMED_ROWS if self._data.streaming else None)
        for index, (where, values) in enumerate(islice(read_source(self._data, source, split), limit)):
            self._where = where
            self._progress.at(where)
            try:
                example = make(values, index)
                if is_reward:
                    self._look_as_reward(example)
                else:
                    self._look(example)
            except ScaleupError as error:
                if error.problems[0].where == KEY:  # it is not the row's
                    self._failing = error.problems
                    break
                self._counts["failing"] += 1
                if len(self._failing) < NUM_ROWS_LISTED:
                    self._failing.append(row_problem(where, error))
                if isinstance(error, SlowTemplate):  # nobody waits for that with every row
                    break
        if not self._failing:
            self._see_prompts()
            self._see_ends()

    def problems(self, path: str) -> list[Problem]:
        """Return the first failing rows, and how many more there are."""
        return self._failing + more_failing(path, self._counts["failing"] - len(self._failing))

    def notes(self) -> Iterator[str]:
        """Yield what is not as one would think, with how often."""
        count, key = self._counts, self._key
        learns = count["learned"]
        if number := self._given.num_lost():
            yield (
                f"{key}: of {number} of {learns} conversations the chat template shows earlier answers otherwise "
                "than they were given: only the last is learned -> data.split_turns: true makes each a row"
            )
        if number := count["refused"]:
            yield (
                f"{key}: of {number} of {learns} conversations the chat template takes an earlier answer only with "
                "what follows it: it is not learned"
            )
        if number := count["altered"]:
            yield f"{key}: of {number} of {learns} conversations the chat template alters or drops what a message says"
        for what in ("tools", "reasoning"):
            if number := count[f"no {what}"]:
                yield f"{key}: of {number} of {learns} conversations the chat template leaves out the {what}"
        if number := count["apart"]:
            yield (
                f"{key}: in {number} of the first {len(self._sample)} rows a token spans the end of the prompt and is "
                "split there -> end the prompt without a space, and begin the completion with it"
            )
        if number := count["other prompt"]:
            yield (
                f"{key}: in {number} of the first {len(self._sample)} conversations generation starts from other "
                f"tokens than the row has before the answer, {self._other}"
            )
        if learns and self._encoder.chat.shows_date:
            yield (
                f"{key}: the chat template shows today's date: a run that goes on another day reads other text -> "
                "name a data.chat_template without it"
            )
        yield from self._notes_on_ends()

    def _notes_on_ends(self) -> Iterator[str]:
        of_sample = f"of the first {len(self._sample)} rows"
        if number := self._counts["no end"]:
            which = "" if number == len(self._sample) else f" (in {number} {of_sample})"
            remedy = "name a data.chat_template whose turns end with a token of the tokenizer"
            remedy = remedy if self._counts["learned"] else "name a model.tokenizer that has one"
            yield f"{self._key}: {self._endless()}: nothing that is learned stops generation{which} -> {remedy}"
        limit = f"data.max_length ({self._data.max_length})"
        if self._is_counted and self._data.too_long == "drop":
            return  # all rows are counted: describe/tokens.py
        if number := self._counts["cut"]:
            what = "is cut at {} and does not learn where it ends", "are cut at {} and do not learn where they end"
            if self._data.too_long == "drop":
                what = "is longer than {} and left out", "are longer than {} and left out"
            yield f"{self._key}: {number} {of_sample} {what[number > 1].format(limit)} -> raise it"
        if (number := self._counts["nothing left"]) and not self._is_counted:
            what = "has nothing to learn within {} and is left out", "have nothing to learn within {} and are left out"
            yield f"{self._key}: {number} {of_sample} {what[number > 1].format(limit)} -> raise it"

    def _look_as_reward(self, prompt: Any) -> None:
        if isinstance(prompt, Chat):
            self._encoder.chat.whole(_longer(prompt, [{"role": "assistant", "content": "a"}]))

    def _look(self, example: Any) -> None:
        if isinstance(example, UnpairedPreference):
            example = example.example
        if isinstance(example, Preferences):
            for pair in example.pairs:
                if isinstance(pair.prompt, Chat):
                    for response in (pair.chosen, pair.rejected):
                        assert not isinstance(response, str), "a chat goes on with messages"
                        self._encoder.chat.whole(_longer(pair.prompt, response))
        elif isinstance(example, Chat):
            for row in example.split() if self._data.split_turns else [example]:
                self._look_at_chat(row)
        elif isinstance(example, PromptCompletion):
            self._keep(example)

    def _look_at_chat(self, chat: Chat) -> None:
        if not chat.answers:  # rows that are answered
            self._encoder.as_text(chat)
            return
        template = self._encoder.chat
        rendered = self._encoder.rendered(chat)
        self._counts["learned"] += 1
        self._given.add(chat, is_rewritten=rendered.num_rewritten > 0)
        self._counts["refused"] += rendered.num_refused > 0
        self._counts["altered"] += rendered.num_altered > 0
        if chat.tools:
            self._counts["no tools"] += template.whole(chat) == template.whole(replace(chat, tools=None))
        if any(message.get(key) for message in chat.messages for key in REASONING_KEYS):
            bare = [{key: value for key, value in m.items() if key not in REASONING_KEYS} for m in chat.messages]
            self._counts["no reasoning"] += template.whole(chat) == template.whole(replace(chat, messages=bare))
        self._keep(chat, rendered)

    def _keep(self, example: PromptCompletion | Chat, rendered: Rendered | None = None) -> None:
        if len(self._sample) < NUM_TOKENIZED:
            self._sample.append(_Sampled(self._where, example, rendered))

    def _sampled(self) -> Iterator[_Sampled]:
        for row in self._sample:
            self._progress.at(row.where)
            yield row

    def _see_prompts(self) -> None:
        """See where prompts end, as generation would start from them."""
        for row in self._sampled():
            if isinstance(row.example, PromptCompletion):
                prompt, completion = row.example.prompt, row.example.completion
                self._counts["apart"] += self._encoder.text.spans_end(prompt, prompt + completion)
            elif row.rendered is not None and self._data.train_on != "all":
                self._see_prompt(row.example, row.rendered)

    def _see_prompt(self, chat: Chat, rendered: Rendered) -> None:
        shown = replace(chat, messages=chat.messages[: chat.answers[-1] + 1])
        if len(shown.messages) == 1:
            return
        before = self._encoder.as_text(opening(shown))
        begins = next((first for first, end in rendered.spans if end > len(before)), 0)
        if begins > len(before) or self._encoder.text.spans_end(before, rendered.text, special=False):
            self._counts["other prompt"] += 1
            self._other = f"e.g. {before[-30:]!r}"

    def _see_ends(self) -> None:
        """See what is left of rows once they are cut, and whether they learn an end."""
        ends, limit = set(answer_ends(self._encoder.tokenizer)), self._data.max_length
        if self._data.train_on == "all":
            return
        for sampled in self._sampled():
            [row] = self._encoder([sampled.example], [sampled.rendered] if sampled.rendered else [])
            if row is None:
                self._counts["nothing left"] += 1
                continue
            last = row.labels[row.labels != IGNORE][-NUM_LAST:].tolist()
            self._counts["cut" if len(row.input_ids) == limit else "no end"] += not ends.intersection(last)
        if self._sample and self._counts["nothing left"] == len(self._sample) < NUM_TOKENIZED:
            what = f"leaves no row of {self._key} with anything to learn"
            self._failing.append(Problem("data.max_length", what, "raise it"))

    def _endless(self) -> str:
        """Return why nothing that is learned ends an answer."""
        if not self._counts["learned"]:
            return "the tokenizer has no eos token"
        template = self._encoder.chat
        if template.end_ids and template.end.strip():
            return f"the chat template does not mark {template.end.strip()!r}, which ends a turn, as the assistant's"
        end = template.end.strip()
        return (
            f"the chat template ends a turn with {end!r}, which is no token"
            if end
            else "the chat template ends no turn"
        )


def _longer(chat: Chat, more: Sequence[Message]) -> Chat:
    return replace(chat, messages=[*chat.messages, *more])


def _of_tokenizer(problem: Problem, where: str) -> Problem:
    """Returns what is wrong with the template of a model that `data.chat_template` is not for as what is wrong with
    that model's tokenizer."""
    if problem.where != KEY:
        return problem
    remedy = f"set {where}.tokenizer to a copy of its tokenizer that has one chat template, the default"
    return replace(problem, where=f"{where}.tokenizer", remedy=remedy)
