"""This module turns axolotl's datasets, whose `type` is a name or a mapping, into sources and row formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scaleup.config.convert.draft import Draft, Left, is_off
from scaleup.config.convert.rows import STATE, Source, named, put_sources, source

Entry = Mapping[str, Any]

ALPACA = "alpaca: the columns become a chat by the tokenizer's template; axolotl writes 'Below is an instruction ...'"
SFT_TYPES: dict[str, tuple[Source, str]] = {
    "alpaca": ({"template": "alpaca"}, ALPACA),
    "alpaca_chat": ({"template": "alpaca"}, ALPACA),
    "gpteacher": ({"template": "alpaca", "columns": {"output": "response"}}, ALPACA),
    "alpaca_chat.load_qa": (
        {"prompt": "{question}", "completion": "{answer}"},
        "<- axolotl writes Alpaca's words around",
    ),
    "oasst": ({"prompt": "{INSTRUCTION}", "completion": "{RESPONSE}"}, "<- axolotl writes Alpaca's words around"),
    "sharegpt": ({"messages": "conversations"}, ""),
}
"""Maps a type -> its row format, and what is to be said of it."""
MARKUP = {
    "chatml": ("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}
"""Maps the first part of a preference type -> what it writes around a prompt, and behind an answer."""
PAIRS = {
    "intel": ("question", "chosen", "rejected"),
    "argilla": ("instruction", "chosen_response", "rejected_response"),
    "icr": ("input", "chosen", "rejected"),
    "prompt_pairs": ("prompt", "chosen", "rejected"),
}
"""Maps the second part -> the columns of prompt, chosen and rejected."""
UNPAIRED = {"intel": "question", "argilla": "instruction", "prompt_pairs": "prompt", "ultra": "prompt"}
WHOLE = frozenset({"argilla_chat", "ultra"})
"""Names the types whose chosen and rejected hold whole conversations."""
ROLES = frozenset({"role", "from", "content", "value"})
TAKEN = frozenset(
    {
        "path",
        "type",
        "split",
        "name",
        "data_files",
        "ds_type",
        "field",
        "field_messages",
        "field_tools",
        "field_chosen",
        "field_rejected",
        "message_property_mappings",
        "message_field_role",
        "message_field_content",
        "roles",
        "roles_to_train",
        "train_on_eos",
        "chat_template",
        "trust_remote_code",
    }
)
"""Names the keys of a dataset that are read here."""


def datasets(draft: Draft, value: Any) -> None:
    put_sources(draft, {"train": _sources(draft, value), **_validation(draft)})
    _note(draft, "data.train", value)


def test_datasets(draft: Draft, value: Any) -> None:
    if "datasets" not in draft.given:
        put_sources(draft, {"validation": _sources(draft, value)})
    _note(draft, "data.validation", value)


def pretraining(draft: Draft, value: Any) -> None:
    """Takes rows of plain text, which are streamed."""
    listed: list[Any] = [value] if isinstance(value, (str, Mapping)) else list(value)
    entries: list[Entry] = [{"path": entry} if isinstance(entry, str) else entry for entry in listed]
    found = [
        {**each, "text": "{" + str(entry.get("text_column") or "text") + "}"}
        for entry in entries
        for each in source(str(entry["path"]), entry.get("data_files"), entry.get("split"), entry.get("name"))
    ]
    put_sources(draft, {"train": found})
    draft.put("data.streaming", True)


def _validation(draft: Draft) -> dict[str, Sequence[Source]]:
    """Returns the sources of `test_datasets` beside those of `datasets`, whose format they may share."""
    entries: Sequence[Entry] = draft.given.get("test_datasets") or ()
    return {"validation": _sources(draft, entries)} if entries else {}


def _sources(draft: Draft, entries: Sequence[Entry]) -> list[Source]:
    found: list[Source] = []
    for number, entry in enumerate(entries):
        form = _format(draft, entry)[0]
        at = source(str(entry["path"]), entry.get("data_files"), entry.get("split"), entry.get("name"))
        found += [{**each, **form} for each in at]
        _leave(draft, f"{draft.key}.{number}", entry)
    return found


def _leave(draft: Draft, where: str, entry: Entry) -> None:
    """Lists what a dataset says that has no counterpart."""
    for key in sorted(set(entry) - TAKEN):
        if not is_off(entry[key]):
            draft.left.append(Left(f"{where}.{key}", entry[key], "see docs/data.md for what a source may say"))
    properties = entry.get("message_property_mappings") or {}
    if odd := {key: each for key, each in properties.items() if each not in ROLES}:
        why = "messages are {role, content} or {from, value}: rename the keys in the file"
        draft.left.append(Left(f"{where}.message_property_mappings", odd, why))
    trained = entry.get("roles_to_train")
    if trained and set(trained) - {"assistant", "gpt"}:
        why = "the assistant's answers are learned, or all with data.train_on: all"
        draft.left.append(Left(f"{where}.roles_to_train", trained, why))
    if entry.get("train_on_eos") not in (None, "turn", "all"):
        why = "what ends a turn is learned with the answer"
        draft.left.append(Left(f"{where}.train_on_eos", entry["train_on_eos"], why))
    if entry.get("chat_template") not in (None, "tokenizer_default"):
        why = "all rows are rendered by data.chat_template, or the tokenizer's own"
        draft.left.append(Left(f"{where}.chat_template", entry["chat_template"], why))


def _note(draft: Draft, key: str, entries: Sequence[Entry]) -> None:
    notes = [note for entry in entries if (note := _format(draft, entry)[1])]
    if notes and key in draft.values:
        draft.notes[key] = max(notes, key=lambda note: note.startswith("<-"))


def _format(draft: Draft, entry: Entry) -> tuple[Source, str]:
    """Returns the row format of a dataset, and what is to be said of it."""
    kind, stage = entry.get("type"), draft.values["stage"]
    if isinstance(kind, Mapping):
        return _own_pairs(kind, draft) if stage == "dpo" else _own(kind)
    base = str(kind or "").partition(":")[0]
    if stage == "dpo":
        return _preferences(base, entry, unpaired=draft.values["dpo.loss"] == "kto")
    if stage == "reward":
        return {"prompt": "{input}", "chosen": "{chosen}", "rejected": "{rejected}"}, ""
    if base == "chat_template":
        tools = {"tools": entry["field_tools"]} if entry.get("field_tools") else {}
        return {"messages": str(entry.get("field_messages") or "messages"), **tools}, ""
    if base == "completion":
        return {"text": "{" + str(entry.get("field") or "text") + "}"}, ""
    return SFT_TYPES.get(base, ({}, f"{STATE} (type {kind})"))


def _own(kind: Entry) -> tuple[Source, str]:
    """Returns the format that a mapping describes, of fields and texts."""
    fields = {name: str(kind.get(f"field_{name}") or name) for name in ("instruction", "input", "output", "system")}
    with_input = bool(kind.get("field_input")) or "{input}" in str(kind.get("format") or "")
    prompt = str(kind.get("format" if with_input else "no_input_format") or kind.get("format") or "{instruction} ")
    note = (
        "<- rows without an input have no form of their own here" if with_input and kind.get("no_input_format") else ""
    )
    if not is_off(kind.get("system_prompt")) or not is_off(kind.get("field_system")):
        note = "<- write the system's words into the prompt"
    return {"prompt": named(prompt, fields), "completion": "{" + fields["output"] + "}"}, note


def _own_pairs(kind: Entry, draft: Draft) -> tuple[Source, str]:
    parts = ("prompt", "completion") if draft.values["dpo.loss"] == "kto" else ("prompt", "chosen", "rejected")
    fields = {name: str(kind.get(f"field_{name}") or name) for name in (*parts, "system")}
    form: Source = {name: named(str(kind.get(f"{name}_format") or "{" + name + "}"), fields) for name in parts}
    if "completion" in parts:
        form["label"] = str(kind.get("field_label") or "label")
    return form, ""


def _preferences(kind: str, entry: Entry, unpaired: bool) -> tuple[Source, str]:
    markup, _, shape = kind.partition(".")
    before, behind = MARKUP.get(markup, ("{prompt}", ""))
    note = "" if markup in MARKUP else f"<- {kind}: {STATE.removeprefix('<- ')}"
    if unpaired and shape in UNPAIRED:
        prompt = before.replace("{prompt}", "{" + UNPAIRED[shape] + "}")
        return {"prompt": prompt, "completion": "{completion}" + behind, "label": "label"}, note
    if shape in PAIRS and not unpaired:
        asked, chosen, rejected = PAIRS[shape]
        prompt = before.replace("{prompt}", "{" + asked + "}")
        return {
            "prompt": prompt,
            "chosen": "{" + chosen + "}" + behind,
            "rejected": "{" + rejected + "}" + behind,
        }, note
    if shape in WHOLE and not unpaired:
        return {"chosen": "{chosen}", "rejected": "{rejected}"}, "conversations, by the tokenizer's template"
    if kind == "chat_template.default" and not unpaired:
        columns = {"prompt": "messages", "chosen": "chosen", "rejected": "rejected"}
        given = {
            name: entry.get(f"field_{'messages' if name == 'prompt' else name}") or columns[name] for name in columns
        }
        return {name: "{" + str(column) + "}" for name, column in given.items()}, "lists of messages"
    return {}, f"{STATE} (type {kind})"
