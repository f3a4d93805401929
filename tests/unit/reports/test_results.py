"""What models wrote is shown as text: a terminal obeys none of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.reports.results import show_generations
from tests.unit.runs.made import ended, made


def test_prompts_and_answers_are_plain_text(tmp_path: Path) -> None:
    run: RunFolder = ended(made(tmp_path, "answers"), "finished")
    chat = [{"role": "system", "content": "be \x1b[2Jbrief"}, {"role": "user", "content": "why?"}]
    rows = [
        {"id": 0, "prompt": "a\x07b", "completion": "\x1b]0;title\x07[bold]c"},
        {"id": 1, "prompt": chat, "completion": "d"},
    ]
    (run.path / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = io.StringIO()
    show_generations(Console(file=text, width=200), run)
    assert text.getvalue().splitlines()[:5] == [
        "a\ufffdb\ufffd]0;title\ufffd[bold]c",
        "system: be \ufffd[2Jbrief",
        "",
        "user: why?",
        "d",
    ]
