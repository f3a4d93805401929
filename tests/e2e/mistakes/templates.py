"""Conversations that their chat template cannot show, and templates that cannot be taken: told before all else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.mistakes.case import bad

CHATS: dict[str, Any] = {
    "data.validation": None,
    "data.prompt": None,
    "data.completion": None,
    "data.messages": "messages",
}
USER, SAID, SYSTEM = ({"role": role, "content": "a"} for role in ("user", "assistant", "system"))
TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}assistant: {% endif %}"
STRICT = TURNS.replace("{{", "{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}{{")


def chats(folder: Path, *rows: list[dict[str, str]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


def strict(folder: Path) -> None:
    """A template without a system role, and two rows in five that have one."""
    chats(folder, [USER, SAID], [SYSTEM, USER, SAID], [USER, SAID], [USER, SAID], [USER, SAID, SYSTEM, SAID])
    (folder / "strict.jinja").write_text(STRICT + ASKS)


def several(folder: Path) -> None:
    """A tokenizer with two templates, none of them the default."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    chats(folder, [USER, SAID])
    backend = Tokenizer(models.BPE({"<|end|>": 0, "a": 1, "b": 2}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|end|>"])
    (folder / "t/additional_chat_templates").mkdir(parents=True)
    backend.save(str(folder / "t/tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    (folder / "t/tokenizer_config.json").write_text(json.dumps(names))
    for name in ("chat", "tool_use"):
        (folder / f"t/additional_chat_templates/{name}.jinja").write_text(TURNS + ASKS)


def unclosed(folder: Path) -> None:
    chats(folder, [USER, SAID])
    (folder / "unclosed.jinja").write_text(TURNS.removesuffix("{% endfor %}"))


TEMPLATES = [
    bad(
        "rows that it refuses",
        "rows.jsonl:2: 'data.messages' the chat template refuses messages of system, user, assistant: no system here",
        "rows.jsonl:5: 'data.messages' the chat template refuses messages of user, assistant, system, assistant",
        changes={**CHATS, "data.chat_template": "strict.jinja"},
        prepare=strict,
        asks=True,
    ),
    bad(
        "several and no default",
        "data.chat_template: the tokenizer has the chat templates chat, tool_use, and none is called default"
        " -> name one of them, e.g. data.chat_template: chat",
        changes={**CHATS, "model.tokenizer": "./t"},
        prepare=several,
        asks=True,
    ),
    bad(
        "one that is no Jinja",
        "unclosed.jinja is no Jinja template: Unexpected end of template.",
        changes={**CHATS, "data.chat_template": "unclosed.jinja"},
        prepare=unclosed,
        asks=True,
    ),
]
CASES = {"template": TEMPLATES}
