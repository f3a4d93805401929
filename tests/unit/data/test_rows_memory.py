"""The memory of a rank does not grow with its rows: what it reads of the file is the kernel's."""

import subprocess
import sys

import numpy as np
import pytest

from scaleup.children import python_environment
from scaleup.data.columns import FORMS
from scaleup.data.token_file import TokenWriter
from scaleup.data.tokenization import IGNORE, Tokens

MOST = 25 * 2**20
"""Bounds what 200,000 rows add, of the 50 MB that 500,000 may."""
RANK = """
import sys
from pathlib import Path
import psutil
from scaleup.data.batching import plan_by_length
from scaleup.data.collate import causal_collator
from scaleup.data.loader import Batching, PlannedLoader, Split, TrainLoader
from scaleup.data.sources import MapSource
from scaleup.data.token_file import TokenFile

def steps(name, num_steps):
    rows = TokenFile(Path(name))
    source, split = MapSource(rows, [0, 0], True), Split(8, 1, 0, 2)
    if sys.argv[3] == "plain":
        loader = TrainLoader([source], [1.0], causal_collator(0), split, None)
    else:
        batching = Batching(plan_by_length(16, len(rows), 0), len(rows), "causal_lm")
        loader = PlannedLoader([source], [1.0], causal_collator(0), split, None, batching)
    for step in range(num_steps):
        loader.batches(step)
    return loader

steps(sys.argv[1], 30)
before = psutil.Process().memory_info().rss
kept = steps(sys.argv[2], 300)
print(psutil.Process().memory_info().rss - before)
"""


def write(file, count):
    ids = np.arange(150, dtype=np.int32)
    labels = np.where(ids > 140, ids, IGNORE).astype(np.int32)
    some = [Tokens(ids[at % 50 :], labels[at % 50 :]) for at in range(1000)]
    writer, columns = TokenWriter(file, "causal"), FORMS["causal"].columns(some)
    for _ in range(count // len(some)):
        writer.add(columns, len(some))
    writer.close()
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "by length"])
def test_a_rank_with_ten_times_as_many_rows(tmp_path, how):
    few, many = write(tmp_path / "few.arrow", 20_000), write(tmp_path / "many.arrow", 200_000)
    command = [sys.executable, "-c", RANK, few, many, how]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, env=python_environment(1)).stdout
    assert int(grown) < MOST, f"{int(grown) / 2**20:.1f} MB more"
