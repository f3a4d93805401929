"""Texts go in; the scores of a judge come out: a language model behind an OpenAI-compatible endpoint reads each prompt
with its response, and a number is read out of what it answers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaleup.config.reward_source import JudgeConfig
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.records.chats import as_transcript
from scaleup.records.template import Template
from scaleup.rl.rewards.http import Endpoint, PostedRewards
from scaleup.rl.rewards.interface import Sample


class JudgeRewards(PostedRewards):
    """Posts a chat completion's request for each sample, several at a time, and takes the last number that the judge's
    pattern finds in its answer."""

    def __init__(self, runtime: Runtime, endpoint: Endpoint, judge: JudgeConfig, where: str = "reward.url") -> None:
        super().__init__(runtime, endpoint, where, judge.max_concurrency)
        self._judge = judge
        self._template = Template(judge.template)
        self._pattern = re.compile(judge.pattern)

    def _requests(self, samples: list[Sample]) -> list[list[Sample]]:
        return [[sample] for sample in samples]

    def _scores(self, samples: Sequence[Sample]) -> list[float]:
        return [self._score(sample) for sample in samples]

    def _score(self, sample: Sample) -> float:
        judge = self._judge
        text = self._template.render({"prompt": read_by_judge(sample), "response": sample.response})
        messages = [{"role": "user", "content": text}]
        answer = self._answer(
            {"model": judge.model, "messages": messages, "temperature": 0, "max_tokens": judge.max_tokens}
        )
        try:
            said = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._unlike(answer, '{"choices": [{"message": {"content": ...}}]}') from error
        return self._number(said)

    def _number(self, said: Any) -> float:
        """Return the last number in an answer. Raises ScaleupError where there is none: no score is made up."""
        found = list(self._pattern.finditer(said)) if isinstance(said, str) else []
        section = self.where.rpartition(".")[0]
        if not found:
            what = f"finds no score in the judge's answer {str(said)[-80:]!r}"
            remedy = f"say in {section}.judge.template what it is to write, or raise {section}.judge.max_tokens"
            raise ScaleupError.of(f"{section}.judge.pattern", what, remedy)
        number = found[-1][1] if self._pattern.groups else found[-1][0]
        try:
            return float(number)
        except (TypeError, ValueError):
            what = f"finds {number!r} in the judge's answer, which is no number"
            raise ScaleupError.of(f"{section}.judge.pattern", what, "let its first group be the number") from None


def read_by_judge(sample: Sample) -> str:
    """Return the prompt as a judge reads it: of a conversation its turns, without the policy's special tokens."""
    if sample.chat is None:
        return sample.prompt
    return as_transcript(sample.chat)


def authorization(judge: JudgeConfig, section: str) -> dict[str, str]:
    """Return the header that holds the key, if the config says where it is. Raises ScaleupError where it is not."""
    key = None
    if judge.api_key_env is not None:
        key, where = os.environ.get(judge.api_key_env, ""), f"{section}.judge.api_key_env"
    elif judge.api_key_file is not None:
        where = f"{section}.judge.api_key_file"
        try:
            key = Path(judge.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ScaleupError.of(where, f"{judge.api_key_file} cannot be read: {error}") from error
    if key is None:
        return {}
    if not key or not key.isprintable() or not key.isascii():
        raise ScaleupError.of(where, "leads to no key", "set it where the run is started")
    return {"Authorization": f"Bearer {key}"}
