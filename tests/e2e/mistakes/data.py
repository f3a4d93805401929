"""Mistakes in the rows and in what the config says of them."""

from __future__ import annotations

import gzip
from pathlib import Path

from tests.e2e.mistakes.case import GOOD_ROW, bad, earlier, folder_of, rows

TEXT = {"data.prompt": None, "data.completion": None}


def no_text(folder: Path) -> None:
    """Writes files that cannot be read as what their names say."""
    packed = gzip.compress(GOOD_ROW.encode() * 100)
    (folder / "utf16.csv").write_text("text,label\nfine,positive\n", encoding="utf-16")
    (folder / "cut.jsonl.gz").write_bytes(packed[:-20])
    (folder / "none.jsonl.bz2").write_text(GOOD_ROW)
    (folder / "packed.jsonl").write_bytes(packed)


def cut_template(folder: Path) -> None:
    """Writes a template that ends too early, and rows for it."""
    (folder / "cut.jinja").write_text("{% for m in messages %}{{ m.content }")
    says = '{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}'
    rows(f'{{"messages": [{says}]}}')(folder)


DATA = [
    bad(
        "files that are not there",
        "row.jsonl' does not exist -> did you mean 'rows.jsonl'?",
        "nowhere/held.jsonl' does not exist",
        changes={"data.train": "row.jsonl", "data.validation": "nowhere/held.jsonl"},
    ),
    bad(
        "a file of another kind",
        "rows.xlsx' is no file of a known kind",
        changes={"data.train": "./rows.xlsx"},
        prepare=lambda folder: (folder / "rows.xlsx").touch(),
    ),
    bad("an empty file", "rows.jsonl' holds no rows -> name a file with rows", prepare=rows()),
    bad("blank lines only", "rows.jsonl' holds no rows", prepare=rows("", "  ")),
    bad(
        "a folder without data files",
        "/rows' is a folder without data files",
        changes={"data.train": "./rows"},
        prepare=folder_of("rows"),
    ),
    bad(
        "bad lines and bad rows, by line number",
        "rows.jsonl:2: is not valid JSON: ",
        "rows.jsonl:3: is not a JSON object",
        "rows.jsonl:4: 'label' is null",
        "rows.jsonl:5: is not valid UTF-8",
        "rows.jsonl:7: 'completion' is empty",
        prepare=rows(
            GOOD_ROW,
            '{"text": "cut',
            "[1, 2]",
            '{"text": "fine", "label": null}',
            b'{"text": "caf\xe9", "label": "x"}',
            "",
            '{"text": "fine", "label": ""}',
        ),
    ),
    bad(
        "more bad rows than can be listed",
        *(f"rows.jsonl:{line}: 'label' is null" for line in range(1, 6)),
        "rows.jsonl: and 15 more rows fail",
        prepare=rows(*['{"text": "a", "label": null}'] * 20),
    ),
    bad(
        "a column that no row has",
        "rows.jsonl: no row has the column 'label' -> did you mean 'labels'?",
        prepare=rows('{"text": "fine", "labels": "positive"}'),
    ),
    bad(
        "a broken CSV file",
        "rows.csv:2: its number of fields is 3, the header's 2",
        changes={"data.train": "rows.csv"},
        prepare=lambda folder: (folder / "rows.csv").write_text("text,label\nfine, really,positive\nbad,negative\n"),
    ),
    bad(
        "a Parquet file that is none",
        "rows.parquet: is not readable Parquet",
        changes={"data.train": "rows.parquet"},
        prepare=lambda folder: (folder / "rows.parquet").write_text("PAR1 not really"),
    ),
    bad(
        "files that are no text, are cut off, or are said to be what they are not",
        "utf16.csv: holds UTF-16, not UTF-8 text -> save it as UTF-8",
        "cut.jsonl.gz: cannot be read: Compressed file ended",
        "none.jsonl.bz2: cannot be read: Invalid data stream",
        "packed.jsonl: holds gzip's compressed bytes, not UTF-8 text -> let its name end in .gz",
        changes={"data.train": ["utf16.csv", "cut.jsonl.gz", "none.jsonl.bz2", "packed.jsonl"]},
        prepare=no_text,
    ),
    bad(
        "numbers that are not finite and keys that come twice",
        "rows.jsonl:1: 'text' is nan, no finite number",
        "rows.jsonl:2: 'label' is inf, no finite number",
        "rows.jsonl:4: names 'text' twice in one object -> keep one of them",
        prepare=rows(
            '{"text": NaN, "label": "x"}',
            '{"text": "a", "label": 1e400}',
            '{"text": "a", "label": "x", "unused": -Infinity}',
            '{"text": "a", "label": "x", "text": "b"}',
        ),
    ),
    bad(
        "a template that reaches into Python",
        "error: data.prompt: 'Review: {text.__class__}' has the field 'text.__class__', which is no plain column name",
        changes={"data.prompt": "Review: {text.__class__}"},
    ),
    bad(
        "templates that are none",
        "error: data.prompt: '{text' is no template",
        "error: data.completion: 'positive' names no column",
        changes={"data.prompt": "{text", "data.completion": "positive"},
    ),
    bad(
        "chat templates that are not there, and keys for conversations where none is",
        "error: data.chat_template: TRL has no template 'qwen3_train' -> did you mean 'trl:qwen3_training'?",
        "error: data.train_on: is for conversations, and no row is one that is learned -> leave it out",
        "error: data.split_turns: is for conversations, and no row is one that is learned -> leave it out",
        "error: model.path: ",
        changes={
            "data.chat_template": "trl:qwen3_train",
            "data.train_on": "last",
            "data.split_turns": True,
            "model.path": "./nowhere",
        },
    ),
    bad(
        "a chat template that does not compile",
        "/cut.jinja is no Jinja template: unexpected '}' (line 1) -> mend it, or name another",
        changes={**TEXT, "data.messages": "messages", "data.chat_template": "cut.jinja", "data.validation": None},
        prepare=cut_template,
        asks=True,
    ),
    bad(
        "an unknown instruction template",
        "error: data.template: 'sentimant' is no template -> did you mean 'sentiment'?",
        changes={**TEXT, "data.template": "sentimant"},
    ),
    bad(
        "no row format",
        "error: data: nothing says how a row becomes an example (data.train.0 has the columns question, answer)",
        changes={**TEXT, "data.validation": None},
        prepare=rows('{"question": "a", "answer": "b"}'),
    ),
    bad(
        "several row formats that the columns tell of",
        "error: data: nothing says how a row becomes an example (data.train.0 has the columns messages, prompt, ",
        changes={**TEXT, "data.validation": None},
        prepare=rows('{"messages": [{"role": "user", "content": "a"}], "prompt": "a", "completion": "b"}'),
    ),
    bad(
        "columns of classifiers",
        "error: data.label: is of classifiers, which stage sft does not train (data.train.0: rows are read as texts",
        changes=TEXT,
    ),
    bad("two row formats", "error: data.text: is set beside prompt, completion", changes={"data.text": "{text}"}),
    bad("half a row format", "error: data.prompt: is set without a completion", changes={"data.completion": None}),
    bad(
        "columns of no field",
        "error: data.columns.txet: the row format has no field 'txet' -> did you mean 'text'?",
        changes={"data.columns": {"txet": "review"}},
    ),
    bad(
        "broken chats",
        "rows.jsonl:1: 'turns' holds a str, not a list of messages",
        "rows.jsonl:2: 'turns[0].role' is 'robot'",
        "rows.jsonl:3: 'turns' has no answer of the assistant",
        changes={"data": {"train": "rows.jsonl", "messages": "turns"}},
        prepare=rows(
            '{"turns": "hello"}',
            '{"turns": [{"role": "robot", "content": "a"}]}',
            '{"turns": [{"role": "user", "content": "a"}]}',
        ),
    ),
    bad(
        "chats that are no conversations, all their mistakes at once",
        "rows.jsonl:1: 'turns[0].from' is 'alien'; 'turns[1].value' is no text",
        "rows.jsonl:2: 'turns[1].tool_calls[0].function.arguments' is no JSON object",
        "rows.jsonl:3: 'turns[0].content[0]' is a part of type 'image_url': only text is read",
        "rows.jsonl:4: 'turns[0].weight' asks to learn a message of role user, which is not supported",
        "rows.jsonl:5: 'tools' holds no list of tools",
        changes={"data": {"train": "rows.jsonl", "messages": "turns"}},
        prepare=rows(
            '{"turns": [{"from": "alien", "value": "a"}, {"from": "gpt", "value": 1}]}',
            '{"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": '
            '[{"type": "function", "function": {"name": "f", "arguments": "{not"}}]}]}',
            '{"turns": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, '
            '{"role": "assistant", "content": "b"}]}',
            '{"turns": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]}',
            '{"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "hammer"}',
        ),
    ),
    bad(
        "training rows to validate on",
        "error: data.validation.0.path: '",
        changes={"data.validation": "../work/rows.jsonl"},
    ),
    bad(
        "everything at once",
        "error: train.max_stesp: unknown key -> did you mean 'max_steps'?",
        "error: train.seed: 'zero' should be a valid integer",
        "error: mixed_precision: fp16 needs a GPU",
        "error: model.path: there is no model folder ./m",
        "error: parallel.strategy: 'single' is one process",
        "error: evaluation.labels: is needed for accuracy",
        "hold.jsonl' does not exist",
        "rows.jsonl:1: is not valid JSON",
        "rows.jsonl:2: 'text' holds a list, not text",
        "error: runs_dir/name (",
        changes={
            "train": {"max_stesp": 3, "seed": "zero"},
            "mixed_precision": "fp16",
            "model.path": "./m",
            "parallel": {"strategy": "single", "num_processes": 2},
            "evaluation.metrics": ["accuracy"],
            "data.validation": "hold.jsonl",
        },
        prepare=lambda folder: (rows("{", '{"text": [], "label": "x"}')(folder), earlier()(folder)),
    ),
]

CASES = {"data": DATA}
