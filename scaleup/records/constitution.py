"""A file of principles goes in; what a model is asked about answers comes out: a critique of one, a revision of it, or
which of two is the better (Bai et al. 2022, "Constitutional AI: Harmlessness from AI Feedback", arXiv:2212.08073)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from scaleup.config.fields import Section, Text
from scaleup.config.load import read_mapping
from scaleup.config.mistakes import as_problem
from scaleup.errors import Problem, ScaleupError
from scaleup.records.chats import Chat, Message, as_transcript
from scaleup.records.preferences import Preference
from scaleup.records.template import Template

Use = Literal["revise", "judge"]
CRITIQUE = "{prompt}{response}\n\nCritique request: {critique_request}\n\nCritique:"
REVISION = (
    "{prompt}{response}\n\nCritique request: {critique_request}\n\nCritique: {critique}\n\n"
    "Revision request: {revision_request}\n\nRevision:"
)
QUESTION = "{prompt}\n\n{question}\n(A) {first}\n(B) {second}\nThe better answer is ("
FIELDS = {
    "critique_template": ("prompt", "response", "critique_request"),
    "revision_template": ("prompt", "response", "critique_request", "critique", "revision_request"),
    "judge_template": ("prompt", "question", "first", "second"),
}
"""Names what each template may hold, and must: `prompt` aside, all that is asked by it."""
NEEDED = {"revise": ("critique_request", "revision_request"), "judge": ("question",)}
TEMPLATES_OF = {"revise": ("critique_template", "revision_template"), "judge": ("judge_template",)}


class Principle(Section):
    """Holds one principle, in the words of each request."""

    name: Text
    critique_request: Text | None = None
    revision_request: Text | None = None
    question: Text | None = None


class Constitution(Section):
    """Holds principles, and the templates that put their requests behind prompts and answers that are texts."""

    principles: Annotated[list[Principle], Field(min_length=1)]
    critique_template: Text = CRITIQUE
    revision_template: Text = REVISION
    judge_template: Text = QUESTION
    options: tuple[Text, Text] = ("A", "B")

    def drawn(self, *key: int) -> Principle:
        """Returns the principle that a seed, a row's number and more draw."""
        return Random(" ".join(map(str, key))).choice(self.principles)

    def critique(self, prompt: str | Chat, response: str, principle: Principle) -> str | Chat:
        """Returns what a critique of a response continues: of a conversation, its next turn."""
        if isinstance(prompt, Chat):
            return _later(prompt, [_answer(response), _request(principle.critique_request)])
        asked = {"prompt": prompt, "response": response, "critique_request": principle.critique_request}
        return Template(self.critique_template).render(asked)

    def revision(self, prompt: str | Chat, response: str, principle: Principle, critique: str) -> str | Chat:
        """Returns what a revision of a response continues."""
        if isinstance(prompt, Chat):
            criticised = [_answer(response), _request(principle.critique_request), _answer(critique)]
            return _later(prompt, [*criticised, _request(principle.revision_request)])
        asked = {
            "prompt": prompt,
            "response": response,
            "critique_request": principle.critique_request,
            "critique": critique,
            "revision_request": principle.revision_request,
        }
        return Template(self.revision_template).render(asked)

    def questions(self, pair: Preference, principle: Principle) -> tuple[str, str]:
        """Returns what one of the options continues: which of two responses is the better, in both orders."""
        prompt = as_transcript(pair.prompt) if isinstance(pair.prompt, Chat) else pair.prompt
        asked = {"prompt": prompt, "question": principle.question}
        one, other = said_in(pair.chosen), said_in(pair.rejected)
        template = Template(self.judge_template)
        return (
            template.render({**asked, "first": one, "second": other}),
            template.render({**asked, "first": other, "second": one}),
        )


DEFAULT = Constitution(
    principles=[
        Principle(
            name="harmless",
            critique_request="Point out what in the answer could hurt someone, or is unkind, unlawful or dishonest.",
            revision_request="Write the answer again without anything that could hurt someone.",
            question="Which answer is less harmful, and kinder?",
        ),
        Principle(
            name="helpful",
            critique_request="Point out where the answer misses what was asked, or is hard to follow.",
            revision_request="Write the answer again, so that it answers what was asked, clearly and briefly.",
            question="Which answer helps more with what was asked?",
        ),
        Principle(
            name="honest",
            critique_request="Point out what in the answer is untrue, made up or more certain than it should be.",
            revision_request="Write the answer again, so that it says what is true and how sure it is.",
            question="Which answer is more truthful?",
        ),
    ]
)
"""Is what is asked where no file is named."""


def read_constitution(path: str | None, use: Use) -> Constitution:
    """Returns the principles of a YAML file, or the default ones. Raises ScaleupError with all its mistakes, and those
    of principles that lack what this use of them asks."""
    if path is None:
        return DEFAULT
    if not Path(path).is_file():
        raise ScaleupError.of(path, "there is no such file of principles", "name a YAML file with a list `principles`")
    raw = read_mapping(Path(path))
    try:
        constitution = Constitution.model_validate(raw)
    except ValidationError as error:
        found = (as_problem(Constitution, item["loc"], dict(item), {}) for item in error.errors())
        raise ScaleupError([Problem(f"{path}: {each.where}", each.what, each.remedy) for each in found]) from None
    if problems := list(_mistakes(constitution, path, use)):
        raise ScaleupError(problems)
    return constitution


def constitution_problems(path: str | None, use: Use) -> list[Problem]:
    """Returns what `read_constitution` is refused for."""
    try:
        read_constitution(path, use)
    except ScaleupError as error:
        return error.problems
    return []


def _mistakes(constitution: Constitution, path: str, use: Use) -> Iterator[Problem]:
    for number, principle in enumerate(constitution.principles):
        for key in NEEDED[use]:
            if getattr(principle, key) is None:
                yield Problem(f"{path}: principles.{number}.{key}", f"is not set, and stage {use} asks it", "set it")
    for key in TEMPLATES_OF[use]:
        try:
            fields = Template(getattr(constitution, key)).fields
        except ScaleupError as error:
            yield from (Problem(f"{path}: {key}", f"{each.where} {each.what}", each.remedy) for each in error.problems)
            continue
        for name in sorted(set(fields) - set(FIELDS[key])):
            yield Problem(f"{path}: {key}", f"has a field '{name}'", f"it may have {', '.join(FIELDS[key])}")
        for name in (name for name in FIELDS[key][1:] if name not in fields):
            yield Problem(f"{path}: {key}", f"does not show {{{name}}}", f"write {{{name}}} where it belongs")
    if use == "judge" and constitution.options[0] == constitution.options[1]:
        yield Problem(f"{path}: options", "are the same text", "give two different ones")


def said_in(response: str | list[Message]) -> str:
    """Returns the words of a response; of messages those of the assistant."""
    if isinstance(response, str):
        return response
    return "\n".join(message.get("content") or "" for message in response if message["role"] == "assistant")


def _later(prompt: Chat, turns: list[Message]) -> Chat:
    return Chat([*prompt.messages, *turns], prompt.tools)


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _request(text: str | None) -> Message:
    return {"role": "user", "content": text}
