"""Rows from files, streams and `datasets`, tokenized."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.config.data import DataConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.data.dataset import load_training_data, train_loader
from scaleup.data.loader import Split
from scaleup.data.prepared import prepared_rows
from scaleup.data.sources import MapSource, StreamSource, hold_out, open_stream, read_source
from scaleup.data.tokenization import FILLER, Encoder, Tokens
from scaleup.errors import ScaleupError
from scaleup.records.examples import example_maker
from tests.unit.data import tiny


def tokens(number):
    return Tokens(np.full(1, number), np.full(1, number))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(num_rows, word="row"):
    return [{"p": f"{word} {index}:", "c": f" {index}"} for index in range(num_rows)]


def data_config(**keys):
    return DataConfig.model_validate({"prompt": "{p}", "completion": "{c}", **keys})


def encoder(data):
    return Encoder(tiny.tokenizer("llama"), "causal_lm", data)


def words(row):
    """A row's prompt and completion as text."""
    return tiny.tokenizer("llama").decode(row.input_ids)


def drawn(source, draws):
    return [int(source.draw(draw).input_ids[0]) for draw in draws]


def stream(num_rows, block, shuffle=True, seed=0, read=None, encoded=None):
    def open_rows():
        for index in range(num_rows):
            if read is not None:
                read.append(index)
            yield index

    def encode(index):
        if encoded is not None:
            encoded.append(index)
        return tokens(index)

    return StreamSource(open_rows, encode, block, [seed], shuffle)


def test_a_map_source_draws_each_row_once_an_epoch():
    source = MapSource([tokens(index) for index in range(9)], [3], shuffle=True)
    first, second = drawn(source, range(9)), drawn(source, range(9, 18))
    assert sorted(first) == sorted(second) == list(range(9)) and first != second
    assert drawn(MapSource(source.rows, [3], shuffle=False), range(10)) == [*range(9), 0]


@given(st.integers(1, 20), st.integers(1, 25), st.booleans(), st.integers(0, 3))
def test_a_stream_gives_the_files_rows_each_epoch(num_rows, block, shuffle, seed):
    source = stream(num_rows, block, shuffle, seed)
    for epoch in range(3):
        rows = drawn(source, range(epoch * num_rows, (epoch + 1) * num_rows))
        assert sorted(rows) == list(range(num_rows))
        assert shuffle or rows == list(range(num_rows))


@given(st.integers(1, 20), st.integers(1, 25), st.lists(st.integers(0, 70), min_size=1, max_size=20))
def test_any_seek_equals_reading_straight(num_rows, block, draws):
    straight = drawn(stream(num_rows, block), range(71))
    assert drawn(stream(num_rows, block), draws) == [straight[draw] for draw in draws]


def test_streams_are_shuffled_in_blocks_by_the_seed():
    orders = {tuple(drawn(stream(40, 10, seed=seed), range(40))) for seed in (0, 0, 1)}
    assert len(orders) == 2
    for order in orders:
        assert order != tuple(range(40))
        assert [sorted(order[at : at + 10]) for at in range(0, 40, 10)] == [
            list(range(at, at + 10)) for at in range(0, 40, 10)
        ]
    source = stream(40, 40)
    assert drawn(source, range(40)) != drawn(source, range(40, 80))


def test_going_on_reads_what_it_skips_but_does_not_tokenize_it():
    read, encoded = [], []
    source = stream(1000, 10, shuffle=False, read=read, encoded=encoded)
    assert drawn(source, [505, 506]) == [505, 506]
    assert encoded == [505, 506]
    assert read == list(range(510)), "and reads no further than it must"


def test_rows_of_a_stream_that_cannot_be_used_are_fillers():
    source = StreamSource(lambda: iter(range(4)), lambda index: None if index == 2 else tokens(index), 4, [0], False)
    assert [source.draw(draw) is FILLER for draw in range(4)] == [False, False, True, False]


def test_an_empty_stream_is_an_error():
    with pytest.raises(ScaleupError, match="no rows"):
        stream(0, 4).draw(0)


@pytest.mark.parametrize("max_rows", [None, 3, 100])
def test_a_stream_of_a_file(tmp_path, max_rows):
    write(tmp_path / "a.jsonl", pairs(7))
    source = {"path": "a.jsonl", "max_rows": max_rows}
    data = data_config(root=str(tmp_path), train=[source], streaming=True, shuffle_buffer=4)
    encode = encoder(data)
    expected = prepared_rows(data, data.train[0], "train", encode).rows
    assert len(expected) == min(7, max_rows or 7)
    rows = [open_stream(data, data.train[0], encode, [0, 0]).draw(draw) for draw in range(len(expected))]
    assert sorted(map(words, rows)) == sorted(map(words, expected)) != list(map(words, rows))
    assert words(expected[0]) == "row 0: 0<|im_end|>"


def test_a_bad_row_of_a_stream_is_named(tmp_path):
    write(tmp_path / "a.jsonl", [*pairs(2), {"p": "no answer"}])
    data = data_config(root=str(tmp_path), train="a.jsonl", streaming=True, shuffle=False)
    source = open_stream(data, data.train[0], encoder(data), [0])
    assert words(source.draw(1)) == "row 1: 1<|im_end|>"
    with pytest.raises(ScaleupError, match=r"a\.jsonl:3.*'c'"):
        source.draw(2)


def test_bad_rows_are_named_together(tmp_path):
    write(tmp_path / "a.jsonl", [{"p": "x"}] * 7 + pairs(1))
    data = data_config(root=str(tmp_path), train="a.jsonl")
    with pytest.raises(ScaleupError) as caught:
        prepared_rows(data, data.train[0], "train", encoder(data))
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems] == ["1", "2", "3", "4", "5"]


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    write(tmp_path / "a.jsonl", [*pairs(3), {"p": "much longer than ten tokens", "c": " x"}])
    data = data_config(root=str(tmp_path), train="a.jsonl", max_length=10)
    made = prepared_rows(data, data.train[0], "train", encoder(data))
    kept, dropped = made.rows, made.num_dropped
    assert (len(kept), dropped) == (3, 1)
    data = data.model_copy(update={"max_length": 2})
    with pytest.raises(ScaleupError, match=r"no row of a\.jsonl fits max_length 2"):
        prepared_rows(data, data.train[0], "train", encoder(data))


@given(st.integers(2, 60), st.floats(0.001, 0.999), st.integers(0, 3))
def test_held_out_rows_are_the_others(num_rows, fraction, seed):
    rows = [tokens(index) for index in range(num_rows)]
    train, held = hold_out(rows, fraction, [seed, 0])
    assert [id(row) for row in sorted([*train, *held], key=lambda row: int(row.input_ids[0]))] == [
        id(row) for row in rows
    ]
    assert len(held) == min(max(1, round(num_rows * fraction)), num_rows - 1)
    assert [id(row) for row in hold_out(rows, fraction, [seed, 0])[1]] == [id(row) for row in held]


def test_held_out_rows_are_drawn_by_the_seed():
    rows = [tokens(index) for index in range(50)]
    held = {tuple(int(row.input_ids[0]) for row in hold_out(rows, 0.2, [seed])[1]) for seed in range(3)}
    assert len(held) == 3 and tuple(range(10)) not in held


@pytest.fixture
def hub_name(tmp_path, monkeypatch):
    """A name that only `datasets` can make something of: a folder of the current directory, not under `data.root`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "here" / "reviews"
    folder.mkdir(parents=True)
    write(folder / "train.jsonl", pairs(5, "train"))
    write(folder / "validation.jsonl", pairs(2, "validation"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(folder.parent)
    return "reviews"


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_names(hub_name, tmp_path, streaming):
    root = str(tmp_path / "elsewhere")
    data = data_config(root=root, train=[{"path": hub_name, "max_rows": 4}], validation=hub_name)
    rows = list(read_source(data, data.train[0], "train", streaming))
    assert rows == [(f"reviews row {index + 1}", row) for index, row in enumerate(pairs(4, "train"))]
    assert [row for _, row in read_source(data, data.validation[0], "validation", streaming)] == pairs(2, "validation")
    make = example_maker(data, data.train[0])
    assert make(rows[0][1], 0).prompt == "train 0:"


def test_a_split_of_a_datasets_name(hub_name, tmp_path):
    source = {"path": hub_name, "split": "train[:40%]"}
    data = data_config(root=str(tmp_path / "elsewhere"), validation=[source])
    assert [row for _, row in read_source(data, data.validation[0], "validation")] == pairs(2, "train")


def test_a_datasets_name_that_cannot_be_had(tmp_path):
    data = data_config(root=str(tmp_path), test="nobody/has-this")
    with pytest.raises(ScaleupError, match="'nobody/has-this' cannot be loaded") as caught:
        list(read_source(data, data.test[0], "test"))
    assert caught.value.problems[0].where == "data.test"
    assert "network" in caught.value.problems[0].remedy


def sft(tmp_path, steps=None, **data):
    return SFTConfig.model_validate(
        {
            "stage": "sft",
            "name": "x",
            "model": {"path": "builtin:tiny-llama"},
            "data": {"root": str(tmp_path), "prompt": "{p}", "completion": "{c}", **data},
            "train": steps or {"max_steps": 3},
        }
    )


def texts(rows):
    return Counter(map(words, rows))


def test_training_data(tmp_path):
    write(tmp_path / "a.jsonl", pairs(8, "a"))
    write(tmp_path / "b.jsonl", [*pairs(4, "b"), {"p": "a long one " * 9, "c": " x"}])
    write(tmp_path / "v.jsonl", pairs(2, "v"))
    config = sft(tmp_path, train=["a.jsonl", "b.jsonl"], validation="v.jsonl", max_length=30)
    data = load_training_data(config, encoder(config.data))
    assert (data.num_rows, data.num_dropped) == (12, 1)
    assert [len(source.rows) for source in data.sources] == [8, 4]
    assert [words(row) for row in data.validation] == ["v 0: 0<|im_end|>", "v 1: 1<|im_end|>"]


def test_a_validation_fraction_is_taken_from_each_source(tmp_path):
    write(tmp_path / "a.jsonl", pairs(8, "a"))
    write(tmp_path / "b.jsonl", pairs(4, "b"))
    config = sft(tmp_path, train=["a.jsonl", "b.jsonl"], validation_fraction=0.25)
    encode = encoder(config.data)
    data = load_training_data(config, encode)
    assert [len(source.rows) for source in data.sources] == [6, 3] and data.num_rows == 9
    assert [words(row)[0] for row in data.validation] == ["a", "a", "b"]
    trained = [row for source in data.sources for row in source.rows]
    every = [row for source in config.data.train for row in prepared_rows(config.data, source, "train", encode).rows]
    assert texts([*trained, *data.validation]) == texts(every)


@pytest.mark.parametrize(
    ("steps", "num_steps", "last"),
    [
        ({"num_train_epochs": 1}, 4, ["row", "filler", "filler", "filler"]),
        ({"num_train_epochs": 2}, 7, ["row", "row", "filler", "filler"]),
        ({"num_train_epochs": 0.5}, 2, ["row", "row", "row", "filler"]),
        ({"max_steps": 5}, 5, ["row"] * 4),
    ],
)
def test_epochs_and_steps(tmp_path, steps, num_steps, last):
    """13 rows in steps of 4: what is left of the last step of the last epoch stays empty."""
    write(tmp_path / "a.jsonl", pairs(13))
    config = sft(tmp_path, steps, train="a.jsonl")
    data = load_training_data(config, encoder(config.data))
    loader, found = train_loader(
        config, data, lambda rows: ["filler" if row is FILLER else "row" for row in rows], Split(4, 1, 0, 1)
    )
    assert found == num_steps
    assert loader.batches(num_steps - 1) == [last]
    assert all(loader.batches(step) == [["row"] * 4] for step in range(num_steps - 1))


def test_streaming_training_data(tmp_path):
    write(tmp_path / "a.jsonl", pairs(4))
    config = sft(tmp_path, train="a.jsonl", streaming=True)
    data = load_training_data(config, encoder(config.data))
    assert data.num_rows is None
    assert texts(data.sources[0].draw(draw) for draw in range(4)) == texts(
        prepared_rows(config.data, config.data.train[0], "train", encoder(config.data)).rows
    )
