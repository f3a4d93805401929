"""A model's tokenizer and prompts behind examples go in; the refusal of examples that leave no room comes out."""

from __future__ import annotations

from scaleup.config.schema import ModelConfig
from scaleup.data.few_shot import KEY, asked_prompts, asked_rows
from scaleup.data.tokenization import Encoder, opening, own_template
from scaleup.errors import Problem, ScaleupError
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts, RowsRequest
from scaleup.records.chats import Chat
from scaleup.records.examples import Opening, PlainText
from scaleup.records.formats import local_path


def check_room(model: ModelConfig, facts: ModelFacts, rows: RowsRequest, where: str) -> None:
    """Looks at every prompt with its examples, as the run will read it. Hub datasets are not downloaded for this: of
    their prompts the run tells how many it cuts.

    Raises ScaleupError where some are longer than data.max_length or the model's positions leave room for, with how
    many, and as reading does."""
    asked, data = rows.in_context, rows.data
    if asked is None:
        return
    splits = ["train", *([asked.split] if asked.split else [])]
    if any(local_path(data, source, split) is None for split in splits for source in getattr(data, split) or []):
        return
    tokenizer = load_tokenizer(model, facts.tokenizer_at, where)
    read_with = own_template(tokenizer, data) if rows.by_own_template else data
    encoder = Encoder(tokenizer, facts.task, read_with.model_copy(update={"too_long": "drop"}))
    most = data.max_length
    if facts.max_positions is not None and facts.task != "seq2seq_lm":
        most = min(most, facts.max_positions - facts.num_virtual_tokens - asked.max_new_tokens)

    if asked.split is None:
        prompts, is_cut = asked_prompts(data, asked.prompts), [False] * len(asked.prompts)
    else:
        examples = asked_rows(data, asked.split, asked.has_completions, asked.max_samples)
        prompts = [opening(e) if isinstance(e, Chat) else e.prompt for e in examples if not isinstance(e, PlainText)]
        whole = [example for example in examples if not isinstance(example, Opening)]
        is_cut = [row is None for row in encoder(whole)] if whole else [False] * len(prompts)
    lengths = [len(ids) for ids in encoder.whole_prompt_ids(prompts)]
    num_over = sum(length > most or cut for length, cut in zip(lengths, is_cut, strict=True))
    if num_over:
        is_own = most == data.max_length
        why = "data.max_length" if is_own else f"its positions less generation.max_new_tokens {asked.max_new_tokens}"
        what = (
            f"{num_over} of {len(prompts)} prompts do not fit with their examples: {where} reads {most} tokens of one "
            f"({why}), and the longest has {max(lengths)}"
        )
        remedy = "use fewer or shorter examples" + (", or raise data.max_length" if is_own else "")
        raise ScaleupError([Problem(KEY, what, remedy)])
