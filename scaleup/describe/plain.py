"""What plain tokenizers, plain Transformers and plain PEFT make of rows, and of the model that a run left: the oracle
that `scaleup verify` holds our own code to. It takes none of the paths by which a run makes tokens, or loads a model.

`python -m scaleup.describe.plain` reads {"config": {...}, "run": FOLDER, "exported": FOLDER or null} from stdin, a
run's config and folder. It prints {CHECK: {"value": ...}}, or "why_not" in its place, or "failed"."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from scaleup.config.data import DataConfig
from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig
from scaleup.data.collate import pad
from scaleup.data.sources import read_source
from scaleup.data.tokenization import IGNORE, Encoder, Tokens
from scaleup.errors import ScaleupError
from scaleup.models.decode import Decoder
from scaleup.models.load import first_line, pad_token_id, quiet_libraries
from scaleup.records.chats import Chat
from scaleup.records.check import maker_of
from scaleup.records.examples import Example, PlainText, PromptCompletion
from scaleup.streams import steady_streams

NUM_ROWS, NUM_PROMPTS, NUM_NEW_TOKENS = 48, 6, 8
"""Bound the rows that are read of each source, and the prompts that are answered, with so many tokens each."""
Row = tuple[list[int], list[int]]
"""Holds the ids and the labels of a row."""


class NotDue(Exception):
    """Tells why a check cannot be made of a run."""


@dataclass(frozen=True)
class Plain:
    """Makes the checks of one run."""

    config: RunConfig
    run: Path
    exported: Path | None = None

    @property
    def folder(self) -> Path:
        return self.run / "model"

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def is_seq2seq(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    @cached_property
    def model(self) -> Any:
        """The model that the run left, as Transformers and PEFT load it."""
        return _loaded(self.folder)

    @cached_property
    def encoder(self) -> Encoder:
        """Our own tokenization, which is looked at."""
        return Encoder(self.tokenizer, "seq2seq_lm" if self.is_seq2seq else "causal_lm", self.config.data)

    def examples(self, split: str) -> Iterator[Example]:
        """Yields what a split's first rows are, as texts and conversations."""
        data = self.config.data
        for source in getattr(data, split) or []:
            make = maker_of(data, source, False)
            assert make is not None, "the run has taken it"
            for index, (_, values) in enumerate(islice(read_source(data, source, split), source.max_rows or NUM_ROWS)):
                yield make(values, index)

    def labels(self) -> float:
        """Returns how many tokens of the training rows are others than a plain tokenizer gives, or are learned where
        they are not to be, or not where they are."""
        others = compared = 0
        for example in self.examples("train"):
            of = seq2seq_row if self.is_seq2seq else oracle_row
            [ours], theirs = self.encoder([example]), of(self.tokenizer, example, self.config.data)
            if theirs is None or ours is None:
                continue
            compared += 1
            others += differing_tokens(ours, theirs)
        if not compared:
            raise NotDue("no row can be told by the tokenizer's offsets alone")
        return others

    def loss(self) -> float:
        """Returns the mean loss a labelled token of the held-out rows, by the saved model's own forward pass."""
        import torch

        total, count = 0.0, 0
        for example in self.examples("validation"):
            [row] = self.encoder([example])
            if row is None:
                continue
            labels = row.num_positions(self.encoder.task)
            ids, labelled = (torch.tensor(part[None], dtype=torch.int64) for part in (row.input_ids, row.labels))
            with torch.no_grad():
                total += float(self.model(input_ids=ids, labels=labelled).loss) * labels
            count += labels
        if not count:
            raise NotDue("there are no held-out rows")
        return total / count

    def padding(self) -> float:
        """Returns how many tokens of greedy answers are others in a batch, beside longer prompts, than alone."""
        if getattr(getattr(self.config, "adapter", None), "type", "") in ("prefix_tuning", "prompt_tuning"):
            raise NotDue("soft prompts stand before the ids")
        prompts = [ids for ids in self._prompts() if ids]
        if len({len(ids) for ids in prompts}) < 2:
            raise NotDue("there are no prompts of different lengths")
        together = self._answers(prompts)
        alone = [self._answers([ids])[0] for ids in prompts]
        return sum(
            sum(one != other for one, other in zip(left, right, strict=False)) + abs(len(left) - len(right))
            for left, right in zip(together, alone, strict=True)
        )

    def _prompts(self) -> Iterator[list[int]]:
        examples = (each for each in self.examples("train") if not isinstance(each, PlainText))
        chosen: list[Any] = list(islice(examples, NUM_PROMPTS))
        yield from self.encoder.prompts(chosen) if chosen else ()

    def _answers(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Returns the tokens of greedy answers up to their end, by our own loop over Transformers' `generate`."""
        import torch

        padding, end = pad_token_id(self.tokenizer), self.tokenizer.eos_token_id
        ids, mask = pad(prompts, padding, left=not self.is_seq2seq)
        asked = {"max_new_tokens": NUM_NEW_TOKENS, "do_sample": False, "pad_token_id": padding, "eos_token_id": end}
        with torch.no_grad():
            made = self.model.generate(input_ids=ids, attention_mask=mask, custom_generate=Decoder(), **asked)
        answers = made[:, 1 if self.is_seq2seq else ids.shape[1] :].tolist()
        return [row[: row.index(end)] if end in row else row for row in answers]

    def merged(self) -> float:
        """Returns the largest difference of a logit of the exported model from that of base and adapter."""
        import torch

        assert self.exported is not None, "it is asked of exports alone"
        other, largest = _loaded(self.exported / "model"), 0.0
        for example in islice(self.examples("train"), NUM_PROMPTS):
            [row] = self.encoder([example])
            if row is None:
                continue
            ids, labels = (torch.tensor(part[None], dtype=torch.int64) for part in (row.input_ids, row.labels))
            with torch.no_grad():
                one, two = (model(input_ids=ids, labels=labels).logits for model in (self.model, other))
            largest = max(largest, float((one - two).abs().max()))
        return largest


def oracle_row(tokenizer: Any, example: Example, data: DataConfig) -> Row | None:
    """Returns the ids and labels of a row by the tokenizer alone; None where a token spans the end of a prompt, or the
    template shows a conversation otherwise once it goes on."""
    if isinstance(example, Chat):
        return _chat_row(tokenizer, example, data)
    if isinstance(example, PlainText):
        return _by_offsets(tokenizer, example.text, [(0, len(example.text))], data.max_length)
    if not isinstance(example, PromptCompletion):
        return None
    whole, start = example.prompt + example.completion, len(example.prompt) * data.completion_only_loss
    return _by_offsets(tokenizer, whole, [(start, len(whole))], data.max_length)


def seq2seq_row(tokenizer: Any, example: Example, data: DataConfig) -> Row | None:
    """Returns the ids of an encoder's text and those of its target."""
    if not isinstance(example, PromptCompletion):
        return None
    ids, target = tokenizer(example.prompt)["input_ids"], tokenizer(text_target=example.completion)["input_ids"]
    end = [] if target[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id]
    return None if max(len(ids), len(target)) > data.max_length else (ids, [*target, *end])


def _by_offsets(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], most: int, is_rendered: bool = False
) -> Row | None:
    """Returns the row of a text of which the tokens within some spans are learned, and the end, which is put behind
    what is no rendered conversation."""
    if not tokenizer.is_fast:
        raise NotDue("the tokenizer gives no offsets")
    encoded = tokenizer(text, add_special_tokens=not is_rendered, return_offsets_mapping=True)
    ids, labels, end = encoded["input_ids"], [], tokenizer.eos_token_id
    for token, (first, last) in zip(ids, encoded["offset_mapping"], strict=True):
        inside = [max(first, start) < min(last, stop) for start, stop in spans]
        if any(inside) and not any(start <= first and last <= stop for start, stop in spans):
            return None
        labels.append(token if any(inside) else IGNORE)
    if not is_rendered and end is not None:
        ids, labels = ([*ids, end], [*labels, end]) if ids[-1:] != [end] else (ids, [*labels[:-1], end])
    return ids[:most], labels[:most]


def _chat_row(tokenizer: Any, chat: Chat, data: DataConfig) -> Row | None:
    messages = list(chat.messages)
    shown = {"tokenize": False, **({"tools": chat.tools} if chat.tools else {})}
    whole = tokenizer.apply_chat_template(messages, **shown)
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    if data.train_on == "all" or not data.completion_only_loss:
        return _by_offsets(tokenizer, whole, [(0, len(whole))], data.max_length, is_rendered=True)
    spans = []
    for turn in turns if data.train_on == "assistant" else turns[-1:]:
        before = tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True, **shown) if turn else ""
        after = tokenizer.apply_chat_template(messages[: turn + 1], **shown)
        if not (whole.startswith(after) and after.startswith(before)):
            return None
        spans.append((len(before), len(after)))
    return _by_offsets(tokenizer, whole, spans, data.max_length, is_rendered=True)


def differing_tokens(ours: Tokens, theirs: Row) -> int:
    """Returns at how many places a row's ids or labels are not those of the oracle."""
    differing = 0
    for own, others in zip((ours.input_ids.tolist(), ours.labels.tolist()), theirs, strict=True):
        differing += abs(len(own) - len(others)) + sum(a != b for a, b in zip(own, others, strict=False))
    return differing


def _loaded(folder: Path) -> Any:
    """Returns a saved model in evaluation mode, or one with its adapter, by Transformers and PEFT alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        return PeftModel.from_pretrained(_loaded(Path(base)), folder).eval()
    is_seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def answers(config: Mapping[str, Any], run: str, exported: str | None) -> dict[str, dict[str, Any]]:
    """Returns what every check of a run came to, by its name; one that cannot be made says why."""
    loaded = load_mapping(dict(config)).config
    assert loaded is not None, "the run has taken it"
    plain = Plain(loaded, Path(run), Path(exported) if exported else None)
    checks: dict[str, Callable[[], float]] = {"labels": plain.labels, "loss": plain.loss, "padding": plain.padding}
    return {name: _told(check) for name, check in ({"merged": plain.merged} if exported else checks).items()}


def _told(check: Callable[[], float]) -> dict[str, Any]:
    try:
        return {"value": check()}
    except NotDue as error:
        return {"why_not": str(error)}
    except (ScaleupError, OSError, RuntimeError, ValueError, KeyError) as error:  # whatever loading a model raises
        return {"failed": first_line(error)}


def main() -> None:
    """Answer stdin on stdout; whatever libraries print goes to stderr."""
    with steady_streams():
        with contextlib.redirect_stdout(sys.stderr):
            quiet_libraries()
            told = answers(**json.load(sys.stdin))
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    gc.disable()  # as in scaleup.describe.answer
    main()
