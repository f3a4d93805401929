"""What plain tokenizers, plain Transformers and plain PEFT make of rows, and of the model that a run left: what
`scaleup verify` holds our own code to. Models are loaded by these libraries alone, and labels are told by oracle.py.

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

from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig
from scaleup.data.collate import pad
from scaleup.data.sources import read_source
from scaleup.data.tokenization import IGNORE, Encoder, Tokens
from scaleup.describe.oracle import Row, Unknown, as_causal, num_differing, oracle
from scaleup.errors import ScaleupError
from scaleup.models.decode import Decoder
from scaleup.models.load import first_line, pad_token_id, quiet_libraries
from scaleup.records.examples import Example, PlainText
from scaleup.streams import steady_streams

NUM_ROWS, NUM_PROMPTS, NUM_NEW_TOKENS = 48, 6, 8
"""Bound the rows that are read of each source, and the prompts that are answered, with so many tokens each."""


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
            make = self.encoder.maker(source)
            for index, (_, values) in enumerate(islice(read_source(data, source, split), source.max_rows or NUM_ROWS)):
                yield from make(values, index)

    def labels(self) -> float:
        """Returns how many tokens of the training rows are others than a plain tokenizer gives, or are learned where
        they are not to be, or not where they are."""
        others = compared = 0
        for example in self.examples("train"):
            try:
                theirs = oracle(self.tokenizer, example, self.config.data, self.encoder.task)
            except Unknown:
                continue
            [ours] = self.encoder([example])
            compared += 1
            others += num_differing(None if ours is None else plain_row(ours, self.encoder.task), theirs)
        if not compared:
            raise NotDue("a plain tokenizer does not tell what of these rows is learned")
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


def plain_row(row: Tokens, task: str) -> Row | None:
    """Returns a row of ours as the oracle has it."""
    ids, labels = row.input_ids.tolist(), row.labels.tolist()
    return (ids, labels) if task == "seq2seq_lm" else as_causal(ids, [label != IGNORE for label in labels])


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
