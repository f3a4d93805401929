"""The run's tokenizers go in; findings come out: pad and eos, what scaleup does where they are missing or the same, and
what the tokenizer and its chat template make of the rows."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.doctor.finding import Finding, ok, warn
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import Plan


def token_findings(plan: Plan) -> Iterator[Finding]:
    """Check the tokenizer of every model in the plan, and pass on what the plan says of the rows."""
    for where, facts in plan.facts.items():
        yield pad_and_eos(where, facts)
    for note in plan.notes:
        if note.startswith("data."):
            what, _, remedy = note.partition(" -> ")
            yield warn("rows", what, remedy)


def pad_and_eos(where: str, facts: ModelFacts) -> Finding:
    pad, eos = facts.pad_token, facts.eos_token
    name, chat = f"tokenizer of {where}", "a" if facts.has_chat_template else "no"
    reads_only = facts.task == "sequence_classification"
    if eos is None and not reads_only:
        what = f"no eos token (pad {pad!r}): nothing ends a completion, so answers run to max_new_tokens"
        return warn(name, what, f"give {where}.tokenizer one with an eos token")
    if pad is None:
        fill = "with eos" if eos is not None else "with token 0"
        what = (
            f"no pad token (eos {eos!r}): batches are filled {fill}, and masks come from positions, so it is safe here"
        )
        return warn(name, what, "other tools may refuse the result, or take its real eos tokens for padding")
    if pad == eos:
        what = f"pad and eos are both {pad!r}: masks come from positions and not from token ids, so it is safe here"
        return warn(name, what, "tools that mask by token id hide the real eos, and never learn to stop")
    return ok(name, f"pad {pad!r}, eos {eos!r}, {chat} chat template")
