"""Build data/reviews/{train,validation,test}.jsonl: film and product review sentences with human ratings.

Run it from anywhere, with the project's Python (`make setup` does):

    .venv/bin/python scripts/prepare_reviews.py [--out DIR]

It downloads the source archive of vaderSentiment (MIT) with pip, checks its SHA-256 and reads the rated sentences from
the archive inside, in memory: nothing is unpacked or installed. The same bytes come out of every run.
"""

import argparse
import hashlib
import html
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REQUIREMENT = "vaderSentiment==3.3.2"  # constraints.txt says the same; a test compares them
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBERS = {
    "movie": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "product": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
}
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "data" / "reviews"

SPLITS = ("train", "validation", "test")
LABELS = ("positive", "negative")
MIN_RATING = 1.0  # |mean rating| below this is too near neutral to call
MIN_WORDS = 3


class Row(NamedTuple):
    """One rated sentence."""

    text: str
    label: str
    rating: float
    source: str


def clean(text: str) -> str:
    """Resolve HTML entities (`&amp;`), write doubled apostrophes as quotes, collapse whitespace."""
    return " ".join(html.unescape(text).replace("''", '"').split())


def label_of(rating: float) -> str | None:
    """The sentiment a mean rating stands for, or None where it is too near neutral."""
    if abs(rating) < MIN_RATING:
        return None
    return "positive" if rating > 0 else "negative"


def parse_line(line: str, source: str) -> Row | None:
    """Read one `id TAB mean rating TAB text` line; None where the sentence is neutral or too short."""
    fields = line.split("\t")
    if len(fields) != 3:
        raise ValueError(f"{source}: expected 3 tab-separated fields, found {len(fields)}: {line!r}")
    rating, text = float(fields[1]), clean(fields[2])
    if not -4.0 <= rating <= 4.0:
        raise ValueError(f"{source}: rating outside [-4, 4]: {line!r}")
    label = label_of(rating)
    if label is None or len(text.split()) < MIN_WORDS:
        return None
    return Row(text, label, round(rating, 4), source)


def digest_of(text: str) -> int:
    """64 bits of the text's SHA-256: the order and the split of a row, whatever file it came from."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(text: str) -> str:
    """About 80/10/10, by the text alone: equal texts can never meet in two splits."""
    bucket = digest_of(text) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def without_duplicates(rows: Iterable[Row]) -> list[Row]:
    """The first row of each text."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.text, row)
    return list(first.values())


def balance(rows: Sequence[Row]) -> list[Row]:
    """As many positive as negative rows within each source, in digest order; surplus rows go from the end of it.

    Balancing within a source keeps the source from hinting at the label: three in five product rows are positive.
    """
    ordered = sorted(rows, key=lambda row: digest_of(row.text))
    counts = Counter((row.source, row.label) for row in ordered)
    kept: Counter[tuple[str, str]] = Counter()
    result = []
    for row in ordered:
        if kept[row.source, row.label] < min(counts[row.source, label] for label in LABELS):
            kept[row.source, row.label] += 1
            result.append(row)
    return result


def make_splits(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Deduplicate, split and balance."""
    by_split: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in without_duplicates(rows):
        by_split[split_of(row.text)].append(row)
    return {split: balance(members) for split, members in by_split.items()}


def read_member(archive: tarfile.TarFile, matches: Callable[[str], bool]) -> bytes:
    """The bytes of the one regular file whose name matches."""
    found = [member for member in archive.getmembers() if member.isfile() and matches(member.name)]
    if len(found) != 1:
        raise ValueError(f"expected one matching file in the archive, found {[member.name for member in found]}")
    stream = archive.extractfile(found[0])
    assert stream is not None  # a regular file always has one
    return stream.read()


def read_rows(sdist: bytes) -> list[Row]:
    """All usable rows of the archive within the source archive, in file order; both files are UTF-8 with CRLF ends."""
    with tarfile.open(fileobj=io.BytesIO(sdist), mode="r:gz") as outer:
        inner = read_member(outer, lambda name: name.endswith("/" + INNER_ARCHIVE))
    rows: list[Row] = []
    with tarfile.open(fileobj=io.BytesIO(inner), mode="r:gz") as archive:
        for source, name in MEMBERS.items():
            content = read_member(archive, name.__eq__).decode("utf-8-sig")
            lines = [line.rstrip("\r") for line in content.split("\n")]
            rows += [row for line in lines if line.strip() and (row := parse_line(line, source))]
    return rows


def download_sdist() -> bytes:
    """Fetch the source archive with pip, and nothing else: its metadata is read by the setuptools that is here."""
    name = REQUIREMENT.partition("==")[0]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-binary", name, "--no-build-isolation"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, *options, "--dest", folder, REQUIREMENT], check=True)
        (path,) = Path(folder).iterdir()
        sdist = path.read_bytes()
    found = hashlib.sha256(sdist).hexdigest()
    if found != SDIST_SHA256:
        raise ValueError(f"{REQUIREMENT}: the source archive's SHA-256 is {found}, expected {SDIST_SHA256}")
    return sdist


def jsonl(rows: Iterable[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)


def counts_table(splits: Mapping[str, Sequence[Row]]) -> str:
    """A Markdown table: rows, classes, sources and mean words of each split."""
    lines = ["| split | rows | positive | negative | movie | product | mean words |", "|---|---|---|---|---|---|---|"]
    for split, rows in splits.items():
        count: Counter[Any] = Counter(row.label for row in rows) + Counter(row.source for row in rows)
        words = sum(len(row.text.split()) for row in rows) / max(1, len(rows))
        cells = [split, len(rows), *(count[key] for key in (*LABELS, *MEMBERS)), f"{words:.1f}"]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def source_page(splits: Mapping[str, Sequence[Row]]) -> str:
    """The text of SOURCE.md."""
    return f"""# Where these rows come from

Built by `scripts/prepare_reviews.py`; not committed.

- **Origin**: `{INNER_ARCHIVE}` in the source archive of {REQUIREMENT}
  (SHA-256 `{SDIST_SHA256}`), the data of C.J. Hutto and E. Gilbert,
  *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text*, ICWSM 2014.
  `movie` sentences are film review snippets collected by Pang and Lee,
  `product` sentences are customer reviews collected by Hu and Liu (2004).
- **Licence**: MIT, Copyright (c) 2016 C.J. Hutto, for the archive. The sentences were written by third parties.
- **Rating**: the mean of independent human ratings in [-4, 4]:
  20 ratings a product sentence, 15 to 29 (18.7 on average) a film sentence.
- **Label**: `positive` where the rating is at least {MIN_RATING:g}, `negative` where it is at most -{MIN_RATING:g};
  the sentences between are left out.
- **Text**: HTML entities resolved, doubled apostrophes written as quotes, whitespace collapsed;
  under {MIN_WORDS} words and exact duplicates left out. Product sentences are lower-case in the source.
- **Splits**: by the SHA-256 of the text, about 80/10/10.
  Rows stand in the order of that hash, so the first N rows are a random sample.
- **Balance**: as many positive as negative rows in each split and source;
  the surplus with the highest hashes is left out.

{counts_table(splits)}
"""


def write_all(splits: Mapping[str, Sequence[Row]], out: Path) -> None:
    """Write every file aside, then rename; train.jsonl last, since make takes it as the sign that all are there."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"SOURCE.md": source_page(splits)} | {f"{split}.jsonl": jsonl(splits[split]) for split in reversed(SPLITS)}
    for name, text in texts.items():
        (out / f".{name}.tmp").write_bytes(text.encode())
    for name in texts:
        (out / f".{name}.tmp").replace(out / name)


def main() -> None:
    """Download, build, write, and print a line of counts."""
    parser = argparse.ArgumentParser(description="Build the review splits from human-rated sentences.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="default: data/reviews")
    out: Path = parser.parse_args().out
    splits = make_splits(read_rows(download_sdist()))
    write_all(splits, out)
    counts = ", ".join(f"{split} {len(rows)}" for split, rows in splits.items())
    print(f"reviews: {counts} rows, half of each positive")


if __name__ == "__main__":
    main()
