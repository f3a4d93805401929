"""A source's tokens: made once, by one process or by several, and again where what they follow from has changed."""

import pytest

from scaleup.data import tokenize
from scaleup.data.prepared import prepared_rows
from scaleup.data.recipe import key_of
from scaleup.data.tokenization import Encoder
from scaleup.data.workers import Workers
from scaleup.distributed.progress import Progress
from scaleup.errors import ScaleupError
from scaleup.models.new_tokens import add_tokens
from tests.unit.data import tiny
from tests.unit.data.test_sources import data_config, encoder, pairs, words, write


def prepared(data):
    return prepared_rows(data, data.train[0], "train", encoder(data))


def test_rows_are_tokenized_once(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", pairs(5, "once"))
    data = data_config(root=str(tmp_path), train="a.jsonl")
    first = list(map(words, prepared(data).rows))
    monkeypatch.setattr("scaleup.data.prepared.tokenized", None)
    assert list(map(words, prepared(data).rows)) == first and len(first) == 5


def test_what_tokens_follow_from_is_in_the_key(tmp_path):
    write(tmp_path / "a.jsonl", pairs(5))
    write(tmp_path / "other.jsonl", pairs(5, "other"))
    write(tmp_path / "same.jsonl", pairs(5))

    def key(name="llama", path="a.jsonl", template=None, source=None, new=(), **keys):
        data = data_config(root=str(tmp_path), train=[{"path": path, **(source or {})}], **keys)
        loaded = tiny.tokenizer(name)
        loaded.chat_template = template or loaded.chat_template
        add_tokens(loaded, new, "model.new_tokens")
        return key_of(data, data.train[0], "train", Encoder(loaded, tiny.facts(name).task, data))

    assert key() == key() == key(path="same.jsonl") == key(shuffle=False) == key(source={"weight": 2})
    others = [
        key(path="other.jsonl"),
        key("t5"),
        key(new=["<new>"]),
        key(template="{{ messages }}"),
        key(max_length=7),
        key(too_long="drop"),
        key(completion_only_loss=False),
        key(train_on="all"),
        key(prompt="Q: {p}"),
        key(source={"max_rows": 4}),
    ]
    assert len({key(), *others}) == len(others) + 1, [key(), *others]


def test_a_tokenizer_that_was_used_has_the_same_key(tmp_path):
    write(tmp_path / "a.jsonl", pairs(5))
    data = data_config(root=str(tmp_path), train="a.jsonl")
    encode = encoder(data)
    fresh = key_of(data, data.train[0], "train", encode)
    encode.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert key_of(data, data.train[0], "train", encode) == fresh
    assert encode(encode.maker(data.train[0])({"p": "a b c", "c": "d"}, 0))[0].input_ids.size > 2


def test_a_file_that_is_damaged_within_is_made_again(tmp_path, capsys):
    write(tmp_path / "a.jsonl", pairs(5, "damaged"))
    data = data_config(root=str(tmp_path), train="a.jsonl")
    made = prepared(data)
    file = made.rows._hold.entry.rows_file
    size = file.stat().st_size
    expected = list(map(words, made.rows))
    file.write_bytes(b"\0" * size)
    second = Progress(None, enabled=False)  # as of a rank that is not the first
    assert list(map(words, prepared_rows(data, data.train[0], "train", encoder(data), second).rows)) == expected
    assert f"{file} is damaged: its bytes are not those that were written" in capsys.readouterr().out


@pytest.mark.slow
def test_several_processes_make_what_one_does(tmp_path, monkeypatch):
    """Rows in their order, what is left out, and the row that fails."""
    write(tmp_path / "a.jsonl", pairs(45))
    monkeypatch.setattr(tokenize, "PART", 4)
    monkeypatch.setattr(tokenize, "num_cores", lambda: 1)
    keys = {"root": str(tmp_path), "train": "a.jsonl", "max_length": 9, "too_long": "drop"}
    alone = list(
        tokenize.tokenized(data_config(**keys), data_config(**keys).train[0], "train", encoder(data_config(**keys)))
    )
    monkeypatch.setattr(tokenize, "num_cores", lambda: 2)
    data = data_config(**keys)
    together = list(tokenize.tokenized(data, data.train[0], "train", encoder(data)))
    assert len(alone) == 12 and 0 < sum(part.left_out["too_long"] for part in alone) < 45
    for one, other in zip(alone, together, strict=True):
        assert (one.num_read, one.num_rows, one.form, one.left_out) == (
            *(other.num_read, other.num_rows, other.form),
            other.left_out,
        )
        for name, column in one.columns.items():
            assert column.values.tolist() == other.columns[name].values.tolist()
            assert column.lengths.tolist() == other.columns[name].lengths.tolist()
    write(tmp_path / "bad.jsonl", [*pairs(40), {"p": "no answer"}])
    with pytest.raises(ScaleupError, match=r"bad\.jsonl:41: 'c'"):
        prepared(data_config(root=str(tmp_path), train="bad.jsonl"))


def dying(setting):
    import os

    return lambda part: os._exit(3) if part == setting else part


def failing(setting):
    def work(part):
        raise ScaleupError.of("data.messages", f"part {part} fails", setting)

    return work


@pytest.mark.slow
def test_a_process_that_dies_is_told_of():
    workers = Workers(f"{__name__}:dying", 3, 2)
    try:
        with pytest.raises(ScaleupError, match="a process that tokenizes rows has ended with code 3"):
            list(workers.map(range(9)))
    finally:
        workers.close()


@pytest.mark.slow
def test_what_a_process_raises_is_raised_here():
    workers = Workers(f"{__name__}:failing", "mend it", 1)
    try:
        with pytest.raises(ScaleupError) as raised:
            list(workers.map([7]))
        assert [str(problem) for problem in raised.value.problems] == ["data.messages: part 7 fails -> mend it"]
    finally:
        workers.close()
