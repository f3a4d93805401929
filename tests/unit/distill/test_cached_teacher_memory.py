"""What a teacher has said of many rows takes no more memory than what it has said of few."""

import subprocess
import sys

import pytest

from scaleup.children import python_environment
from tests.unit.data.test_rows_memory import MOST, write

RANK = """
import resource
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages.distill import CacheSettings
from scaleup.data.collate import TopK
from scaleup.data.dataset import TrainingData
from scaleup.data.sources import MapSource, hold_out
from scaleup.data.token_file import TokenFile
from scaleup.distill import cached_teacher
from scaleup.train.job import Job
from tests.unit.data import tiny
from tests.unit.distill.test_cached_teacher import config

class Teacher:
    def __init__(self, *settings):
        pass

    def __call__(self, rows, device):
        count = sum(row.num_positions("causal_lm") for row in rows)
        return TopK(torch.zeros(count, 4, dtype=torch.int32), torch.zeros(count, 5))

cached_teacher.TopKTeacher = Teacher
cached_teacher.load_finished = lambda *model, **options: None

def peak(name):
    place = Path(name).with_suffix("")
    place.mkdir()
    whole = config("llama", 4)
    whole = whole.model_copy(update={"train": whole.train.model_copy(update={"per_device_eval_batch_size": 100})})
    plan = tiny.plan(place, "llama", models={"teacher": tiny.facts("llama")})
    job = Job(whole, plan, tiny.single_process(place), RunFolder(place))
    rows, held = hold_out(TokenFile(Path(name)), 0.1, [0])
    data = TrainingData([MapSource(rows, [0, 0], True)], held, len(rows), {}, "causal_lm")
    data = cached_teacher.with_cached_teacher(job, CacheSettings(top_k=4), data, lambda model: None)
    drawn = [data.sources[0].draw(number).teacher_top_k[0].shape for number in range(5000)]
    assert set(drawn) == {(9, 4)} and data.validation[-1].teacher_top_k[1].shape == (9, 5), set(drawn)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak(sys.argv[2])
print(peak(sys.argv[3]) - before)
"""


@pytest.mark.slow
def test_a_rank_with_ten_times_as_many_rows(tmp_path, repository):
    """Which were 165 MB more, as objects of Python."""
    files = [write(tmp_path / "few.arrow", 10_000), write(tmp_path / "many.arrow", 100_000)]
    command = [sys.executable, "-c", RANK, str(repository), *files]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=python_environment(1))
    assert ran.returncode == 0, ran.stderr
    grown = int(ran.stdout.splitlines()[-1])
    assert grown < MOST, f"{grown / 2**20:.1f} MB more"
