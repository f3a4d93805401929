"""Write the long rows of the benchmarks: Debian's package descriptions, each with its one-line summary to be written.

    .venv/bin/python benchmarks/prepare_descriptions.py       (a Debian machine; 15 MB through its package manager)

It asks the machine's own package sources for their English descriptions, in folders of its own, and writes
.cache/benchmarks/descriptions.jsonl: rows {"text", "summary"} in an order drawn by a fixed seed. Each description has
its package's licence, so none is committed."""

from __future__ import annotations

import json
import random
import re
import subprocess
import tempfile
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / ".cache" / "benchmarks" / "descriptions.jsonl"
NUM_ROWS = 4000
ENTRY = re.compile(r"^Description-en: (.*?)\n(.*)", re.DOTALL | re.MULTILINE)


def main() -> None:
    rows = sorted(set(read_rows(fetch())))
    random.Random(0).shuffle(rows)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "summary": summary}) + "\n" for text, summary in rows[:NUM_ROWS]]
    OUT.write_text("".join(lines), encoding="utf-8")
    print(f"{OUT}: {len(lines)} of {len(rows)} descriptions")


def fetch() -> str:
    with tempfile.TemporaryDirectory() as folder:
        lists, cache = Path(folder, "lists"), Path(folder, "cache")
        for place in (lists, cache):
            (place / "partial").mkdir(parents=True)
        settings = [
            f"Dir::State::lists={lists}",
            f"Dir::Cache={cache}",
            "Acquire::Languages=en",
            "APT::Sandbox::User=root",
        ]
        flags = [f"-o{setting}" for setting in settings]
        subprocess.run(["apt-get", "update", "-qq", *flags], check=True)
        files = sorted(lists.glob("*Translation-en*"))
        command = ["/usr/lib/apt/apt-helper", "cat-file", *map(str, files)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def read_rows(listing: str) -> list[tuple[str, str]]:
    """(description in one line, its summary) of every entry that has both."""
    rows = []
    for entry in listing.split("\n\n"):
        if found := ENTRY.search(entry):
            lines = [line.strip() for line in found[2].split("\n")]
            text = " ".join(" ".join(line for line in lines if line != ".").split())
            if text:
                rows.append((text, found[1].strip()))
    return rows


if __name__ == "__main__":
    main()
