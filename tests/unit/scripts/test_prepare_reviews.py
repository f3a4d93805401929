"""The review script's own arithmetic, on small archives made in memory."""

import importlib.util
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_reviews", ROOT / "scripts" / "prepare_reviews.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reviews = load_script()


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sdist(movie: str, product: str) -> bytes:
    inner = {reviews.MEMBERS["movie"]: movie.encode(), reviews.MEMBERS["product"]: product.encode()}
    outer = {"package-1/README": b"nothing here", f"package-1/{reviews.INNER_ARCHIVE}": tar_gz(inner)}
    return tar_gz(outer)


def rows(label: str, source: str, count: int) -> list:
    return [reviews.Row(f"{source} sentence number {i}, {label}", label, 2.0, source) for i in range(count)]


def test_the_pinned_version_is_the_one_constraints_name():
    assert reviews.REQUIREMENT in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("rating", "label"),
    [(4.0, "positive"), (1.0, "positive"), (0.9999, None), (0.0, None), (-0.9999, None), (-1.0, "negative")],
)
def test_only_ratings_of_at_least_one_are_labelled(rating, label):
    assert reviews.label_of(rating) == label


def test_a_line_becomes_a_row():
    row = reviews.parse_line("309_8\t-2.26666666667\t  it froze &amp; I'm   ''out'' $ 300 – Almodóvar ", "product")
    assert row == reviews.Row('it froze & I\'m "out" $ 300 – Almodóvar', "negative", -2.2667, "product")


@pytest.mark.parametrize("line", ["1\t0.5\ta neutral enough sentence", "2\t3.1\tgreat player."])
def test_neutral_and_short_sentences_are_left_out(line):
    assert reviews.parse_line(line, "movie") is None


@pytest.mark.parametrize(
    ("line", "message"),
    [("1\t2.0", "3 tab-separated"), ("1\t2.0\ta\tb", "3 tab-separated"), ("1\t7.5\tone two three", "outside")],
)
def test_a_malformed_line_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        reviews.parse_line(line, "movie")


def test_rows_are_read_from_the_archive_within_the_archive():
    movie = "1\t2.5\tA lovely, moving film.\r\n2\t0.1\tIt runs two hours.\r\n3\t-3\tBoring from the start."
    product = "1_1\t-1.5\tthe battery died within a week.\r\n\r\n"
    assert reviews.read_rows(sdist(movie, product)) == [
        reviews.Row("A lovely, moving film.", "positive", 2.5, "movie"),
        reviews.Row("Boring from the start.", "negative", -3.0, "movie"),
        reviews.Row("the battery died within a week.", "negative", -1.5, "product"),
    ]


def test_an_archive_without_the_data_is_refused():
    with pytest.raises(ValueError, match="expected one matching file"):
        reviews.read_rows(tar_gz({"package-1/README": b""}))


def test_the_split_is_fixed_by_the_text_and_near_80_10_10():
    counts = Counter(reviews.split_of(f"some sentence {i}") for i in range(5000))
    assert counts["train"] == pytest.approx(4000, rel=0.03)
    assert counts["validation"] == pytest.approx(500, rel=0.15)
    assert counts["test"] == pytest.approx(500, rel=0.15)
    assert [reviews.split_of(text) for text in ("Dull.", "Superb")] == [
        "train",
        "validation",
    ]  # the same on every machine


def test_balance_evens_the_classes_within_each_source():
    kept = reviews.balance(
        [
            *rows("positive", "movie", 7),
            *rows("negative", "movie", 4),
            *rows("positive", "product", 2),
            *rows("negative", "product", 5),
        ]
    )
    assert Counter((row.source, row.label) for row in kept) == {
        ("movie", "positive"): 4,
        ("movie", "negative"): 4,
        ("product", "positive"): 2,
        ("product", "negative"): 2,
    }


def test_balance_does_not_depend_on_the_order_of_the_rows():
    given = [*rows("positive", "movie", 9), *rows("negative", "movie", 5)]
    assert reviews.balance(given) == reviews.balance(given[::-1])


def test_no_text_stands_twice_and_none_in_two_splits():
    given = [*rows("positive", "movie", 60), *rows("negative", "movie", 60)]
    splits = reviews.make_splits([*given, *given])
    texts = [row.text for members in splits.values() for row in members]
    assert len(texts) == len(set(texts))
    assert set(splits) == {"train", "validation", "test"}
    for members in splits.values():
        labels = Counter(row.label for row in members)
        assert labels["positive"] == labels["negative"] > 0


def test_two_builds_write_the_same_bytes_and_nothing_else(tmp_path):
    splits = reviews.make_splits([*rows("positive", "movie", 40), *rows("negative", "movie", 40)])
    for folder in ("one", "two"):
        reviews.write_all(splits, tmp_path / folder)
    reviews.write_all(splits, tmp_path / "two")  # over what is there
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["SOURCE.md", "test.jsonl", "train.jsonl", "validation.jsonl"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    first = json.loads((tmp_path / "one" / "train.jsonl").read_text().splitlines()[0])
    assert list(first) == ["text", "label", "rating", "source"]
    assert f"| train | {len(splits['train'])} |" in (tmp_path / "one" / "SOURCE.md").read_text()
