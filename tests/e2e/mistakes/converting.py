"""Mistakes in what is asked of `scaleup convert`."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.mistakes.case import Case, bad

AXOLOTL = "base_model: acme/m\nlearning_rate: 1e-4\n"


def asked(name: str, *lines: str, text: str = AXOLOTL, options: tuple[str, ...] = ()) -> Case:
    return bad(name, *lines, text=text, command=("convert", "config.yaml", *options))


def taken(folder: Path) -> None:
    (folder / "ours.yaml").write_text("mine")


CONVERT = [
    bad("no such file", "nothing.yaml: there is no such config file", command=("convert", "nothing.yaml")),
    asked("a list", "config.yaml: holds no mapping of keys to values -> name a config of axolotl", text="- a\n"),
    bad("a config of ours", "config.yaml: is a config of scaleup already", command=("convert", "config.yaml")),
    asked("keys of nobody", "config.yaml: has no key by which configs of axolotl", text="lr: 1\n"),
    asked("an unknown trainer", "--from: 'axolot' is no trainer", options=("--from", "axolot")),
    asked("a kind of run that is not converted", "rl: 'grpo' is not converted", text=f"{AXOLOTL}rl: grpo\n"),
    asked("no model", "model: is missing", text="learning_rate: 1e-4\n", options=("--from", "axolotl")),
    bad(
        "a file that is there",
        "ours.yaml: exists already -> name another",
        text=AXOLOTL,
        command=("convert", "config.yaml", "-o", "ours.yaml"),
        prepare=taken,
    ),
]

CASES = {"convert": CONVERT}
