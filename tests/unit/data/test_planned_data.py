"""From a config to planned batches: their number, and a row that no batch can take."""

import pytest

from scaleup.data.dataset import load_training_data, train_loader
from scaleup.data.loader import Split
from scaleup.data.tokenization import FILLER
from scaleup.errors import ScaleupError
from tests.unit.data.test_sources import encoder, pairs, sft, write


def test_steps_of_planned_batches(tmp_path):
    """From the batches as they are: 13 rows in pairs of tokens' worth, in sequences, and by count."""
    write(tmp_path / "a.jsonl", pairs(13))
    plain = sft(tmp_path, {"num_train_epochs": 2}, train="a.jsonl")
    longest = max(len(row.input_ids) for row in load_training_data(plain, encoder(plain.data)).sources[0].rows)
    length = 2 * longest
    for train, keys, micro, fewest, most in (
        ({"tokens_per_device": length}, {}, 1, 13, 14),
        ({}, {"packing": True, "max_length": length}, 1, 12, 14),
        ({"group_by_length": True}, {}, 2, 13, 13),
    ):
        config = sft(tmp_path, {"num_train_epochs": 2, **train}, train="a.jsonl", **keys)
        data = load_training_data(config, encoder(config.data))
        loader, steps = train_loader(config, data, list, Split(micro, 1, 0, 1))
        assert fewest <= steps <= most
        seen = sum(len(row.input_ids) for step in range(steps) for [batch] in [loader.batches(step)] for row in batch)
        filled = sum(row is FILLER for row in loader.batches(steps - 1)[0])
        assert seen - filled == 2 * sum(len(row.input_ids) for row in data.sources[0].rows)


def test_a_row_larger_than_the_tokens_of_a_device(tmp_path):
    write(tmp_path / "a.jsonl", pairs(13))
    config = sft(tmp_path, {"max_steps": 1, "tokens_per_device": 2}, train="a.jsonl")
    with pytest.raises(ScaleupError, match=r"train\.tokens_per_device: 2 tokens do not hold a row of a.jsonl with \d+"):
        load_training_data(config, encoder(config.data))
