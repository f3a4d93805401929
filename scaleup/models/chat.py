"""A model and what a user types go in; its answers come out as they are written, on a terminal or line by line.

`python -m scaleup.models.chat FILE` reads a config of stage generate and the model's facts from a file that
`scaleup chat` writes, {"config": {...}, "facts": {...}, "device": "cpu"}, and then lines from stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, TextStreamer

from scaleup.config.stages.generate import GenerateConfig
from scaleup.data.chat import answer_ends
from scaleup.data.tokenization import Encoder
from scaleup.models.adapted import load_finished
from scaleup.models.generation import AnswerStops, asked_for, before_stop
from scaleup.models.load import load_tokenizer, pad_token_id, quiet_libraries
from scaleup.plan.facts import ModelFacts
from scaleup.records.chats import Chat, Message
from scaleup.streams import steady_streams

HELP = "/reset forgets the conversation, /exit ends; Ctrl-C ends an answer, Ctrl-D the conversation"


class Answer(TextStreamer):
    """Shows an answer word by word, up to the first of the texts that end one: what may begin one waits."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], show: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""
        """Holds what has been shown."""
        self._stop, self._show, self._waiting = stop, show, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Takes the next words."""
        self._waiting += text
        ready = before_stop(self._waiting, self._stop)
        if ready != self._waiting:
            self._stop, self._waiting = [""], ready  # nothing comes after it
        elif not stream_end:
            ready = ready[: len(ready) - self._num_held(ready)]
        self._waiting = self._waiting[len(ready) :]
        self.text += ready
        self._show(ready)

    def _num_held(self, text: str) -> int:
        """Counts the last characters that may be the beginning of a text that ends the answer."""
        beginnings = [each[:length] for each in self._stop for length in range(1, len(each))]
        return max((len(start) for start in beginnings if text.endswith(start)), default=0)


@dataclass
class Conversation:
    """Holds what was said. A model whose tokenizer has a chat template reads all of it; another one continues each text
    by itself."""

    model: Any
    encoder: Encoder
    config: GenerateConfig
    messages: list[Message] = field(default_factory=list)

    @property
    def is_chat(self) -> bool:
        return bool(self.encoder.tokenizer.chat_template) and not self.model.config.is_encoder_decoder

    def answer(self, said: str, show: Callable[[str], object]) -> bool:
        """Answers, shows that, and remembers what was shown, also of an answer that Ctrl-C has ended. Returns whether
        the model saw the whole conversation: where it has no room for all, it sees the end."""
        settings, tokenizer = self.config.generation, self.encoder.tokenizer
        messages = [*self.messages, {"role": "user", "content": said}]
        self.encoder.truncated.clear()
        [ids] = self.encoder.prompt_ids([Chat(messages) if self.is_chat else said])
        prompt = torch.tensor([ids], device=self.model.device)
        answer = Answer(tokenizer, settings.stop or [], show)
        stops = StoppingCriteriaList()
        if settings.stop:
            stops.append(AnswerStops(tokenizer, settings.stop, 1 if self.model.config.is_encoder_decoder else len(ids)))
        try:
            with torch.no_grad():
                self.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    pad_token_id=pad_token_id(tokenizer),
                    eos_token_id=answer_ends(tokenizer, self.model) or None,
                    stopping_criteria=stops,
                    streamer=answer,
                    **asked_for(settings),
                )
        finally:
            if self.is_chat:
                self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return not self.encoder.truncated["prompts"]


def converse(conversation: Conversation, is_terminal: bool) -> None:
    """Reads what the user says, a line each, and answers, until the input or the user ends it."""
    while True:
        try:
            said = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}")
            continue
        if said == "/exit":
            return
        if said == "/reset":
            conversation.messages = []
        elif said:
            try:
                if not conversation.answer(said, lambda text: print(text, end="", flush=True)):
                    print("\nnote: the conversation is longer than the model's positions; it saw the end", end="")
            except KeyboardInterrupt:
                pass
            print()


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    config, facts = GenerateConfig.model_validate(asked["config"]), ModelFacts.model_validate(asked["facts"])
    quiet_libraries()
    tokenizer = load_tokenizer(config.model, facts.tokenizer_at)
    device = torch.device(asked["device"])
    model = load_finished(config.model, facts, config.quantization, config.mixed_precision, device)
    most = config.data.max_length
    if facts.max_positions is not None and facts.task != "seq2seq_lm":
        most = facts.max_positions - facts.num_virtual_tokens - config.generation.max_new_tokens
    encoder = Encoder(tokenizer, facts.task, config.data.model_copy(update={"max_length": most}))
    conversation = Conversation(model, encoder, config)
    torch.manual_seed(config.generation.seed)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (what is typed can be edited)
        print(HELP if conversation.is_chat else f"no chat template: each text is continued by itself; {HELP}")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        converse(conversation, is_terminal)


if __name__ == "__main__":
    with steady_streams():
        main()
