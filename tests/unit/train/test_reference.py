from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scaleup.artifacts.run_folder import RunFolder
from scaleup.data.dataset import TrainingData
from scaleup.data.preferences import preference_collator
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import PreferenceTokens, Tokens
from scaleup.train.reference import FILE, CachedReference
from tests.unit.data import tiny


def tokens(*ids):
    return Tokens(np.array(ids, np.int32), np.array([-100, *ids[1:]], np.int32))


PAIRS = [PreferenceTokens(tokens(1, 5, 6 + n % 3, *range(n)), tokens(1, 7)) for n in range(5)]


class Asked:
    """Answers with the sums of the responses' labels, and counts the questions."""

    def __init__(self):
        self.num_batches = 0

    def __call__(self, model, batch):
        self.num_batches += 1
        return torch.where(batch.labels > 0, batch.labels, 0).sum(dim=1).float().view(2, -1).T


@pytest.fixture
def job(tmp_path):
    runtime = tiny.single_process(tmp_path / "runtime")
    config = SimpleNamespace(train=SimpleNamespace(per_device_eval_batch_size=2))
    return SimpleNamespace(runtime=runtime, config=config, folder=RunFolder(tmp_path))


def filled(job, pairs=PAIRS):
    model, asked = tiny.model("llama"), Asked()
    sources = [MapSource(pairs[:2], [0], shuffle=False), MapSource(pairs[2:4], [1], shuffle=False)]
    cached = CachedReference(job, TrainingData(sources, pairs[4:], 4, {}, "causal_lm"))
    collate = preference_collator(tiny.collator("llama", model))
    cached.fill(model, collate, asked)
    rows = [row for part in (*(source.rows for source in sources), cached.data.validation) for row in part]
    return asked, rows, collate(rows)


def test_each_row_gets_what_was_said_of_it(job):
    asked, rows, batch = filled(job)
    assert asked.num_batches == 3
    sums = [[sum(side.labels[1:]) for side in row.responses] for row in PAIRS]
    assert [row.reference_logps.tolist() for row in rows] == sums
    assert batch.reference_logps.tolist() == [one for one, _ in sums] + [other for _, other in sums]


def test_what_was_said_is_read_again_unless_it_is_damaged_or_of_other_rows(job):
    before = filled(job)[1]
    asked, rows, _ = filled(job)
    assert asked.num_batches == 0
    assert all((one.reference_logps == other.reference_logps).all() for one, other in zip(before, rows, strict=True))
    file = job.folder.path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert filled(job)[0].num_batches == 3
    assert file.read_bytes() == whole
    assert filled(job, PAIRS[::-1])[0].num_batches == 3


def test_a_filler_is_never_asked(job):
    _, rows, _ = filled(job)
    batch = preference_collator(tiny.collator("llama", tiny.model("llama")))([rows[0], None])
    assert batch.reference_logps[[1, 3]].tolist() == [0, 0]
