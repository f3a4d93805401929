"""What is written to a file of tokens is what is read, whatever the kind of row and the size of the parts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.data.columns import FORMS, runs_of
from scaleup.data.rows import Chosen, Joined, widths_of
from scaleup.data.token_file import BATCH, TokenFile, TokenWriter
from scaleup.data.tokenization import IGNORE, LabelledTokens, PairTokens, TargetTokens, Tokens

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(lambda ids: np.array(ids, np.int32))


def causal(ids, mask):
    return Tokens(ids, np.where(np.resize(np.array(mask), len(ids)), ids, IGNORE).astype(np.int32))


ROWS = {
    "causal": st.builds(causal, IDS, st.lists(st.booleans(), min_size=1, max_size=9)),
    "seq2seq": st.builds(Tokens, IDS, IDS),
    "pairs": st.builds(PairTokens, IDS, IDS, st.floats(allow_nan=False)),
    "labelled": st.builds(LabelledTokens, IDS, st.integers(0, 2**40)),
    "targets": st.builds(TargetTokens, IDS, IDS.map(lambda numbers: numbers.astype(np.float32))),
}
TASKS = {"seq2seq": "seq2seq_lm", "causal": "causal_lm"}


def written(file, form, rows, part):
    writer = TokenWriter(file, form)
    for first in range(0, len(rows), part):
        some = rows[first : first + part]
        writer.add(FORMS[form].columns(some), len(some))
    writer.close()
    assert writer.num_rows == len(rows)
    return TokenFile(file)


def parts_of(row):
    return {
        name: (value.tolist(), value.dtype) if isinstance(value, np.ndarray) else value
        for name, value in vars(row).items()
    }


@pytest.mark.parametrize("form", ROWS)
@given(data=st.data(), part=st.integers(1, 7))
def test_rows_come_back(form, data, part, tmp_path_factory):
    rows = data.draw(st.lists(ROWS[form], min_size=1, max_size=20))
    read = written(tmp_path_factory.mktemp("file") / "rows.arrow", form, rows, part)
    assert [parts_of(row) for row in read] == [parts_of(row) for row in rows]
    assert parts_of(read[-1]) == parts_of(rows[-1]) and len(read[1:3]) == len(rows[1:3])
    task = TASKS.get(form, "sequence_classification")
    assert widths_of(read, task).tolist() == widths_of(rows, task).tolist()


def test_many_batches_of_rows(tmp_path):
    """Parts that fill several batches at once, and end within one."""
    rows = [causal(np.arange(1 + at % 5, dtype=np.int32) + at, [at % 3 > 0, True]) for at in range(2 * BATCH + 77)]
    read = written(tmp_path / "rows.arrow", "causal", rows, BATCH + 1000)
    assert len(read) == len(rows)
    for at in (0, BATCH - 1, BATCH, 2 * BATCH, len(rows) - 1):
        assert parts_of(read[at]) == parts_of(rows[at])
    some = np.array([5, BATCH, 2 * BATCH + 5])
    joined = Joined([Chosen(read, some), rows[:3]])
    assert [row.input_ids[0] for row in joined] == [*some, 0, 1, 2]
    assert widths_of(joined, "causal_lm")[:, 0].tolist() == [len(row.input_ids) for row in joined]
    with pytest.raises(IndexError):
        joined[6]


@given(st.lists(st.lists(st.booleans(), max_size=12), max_size=8))
def test_runs_are_where_masks_are_true(masks):
    runs = runs_of([np.array(mask, bool) for mask in masks])
    found, at = [], 0
    for mask, count in zip(masks, runs.lengths, strict=True):
        of_row = runs.values[at : at + count].tolist()
        at += count
        again = [False] * len(mask)
        for first, end in zip(of_row[::2], of_row[1::2], strict=True):
            again[first:end] = [True] * (end - first)
        found.append(again)
    assert found == masks


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0 and no more", b"x" * 4000])
def test_a_damaged_file(tmp_path: Path, content: bytes):
    file = tmp_path / "rows.arrow"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="no file of tokens"):
        TokenFile(file)
