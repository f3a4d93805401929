"""What a teacher says, written once: each row has its own part, and a student learns as from the teacher itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaleup.artifacts.data_file import RunData
from scaleup.artifacts.files import aside_of, write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages.distill import CacheSettings, DistillConfig, DistillSettings
from scaleup.data.collate import top_k_collator
from scaleup.data.dataset import TrainingData
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import FILLER, IGNORE, Tokens
from scaleup.distill.cached_teacher import INDEX, Cache, TopKTeacher, _check_disk, with_cached_teacher
from scaleup.distill.language import CachedDistillation, Distillation
from scaleup.distill.train import distillation_loss
from scaleup.errors import ScaleupError
from scaleup.train.job import Job
from tests.unit.data import tiny
from tests.unit.distill.test_language import padded, run, teacher_of

NAMES = ["llama", "gpt2", "t5", "bart"]
T = 2.0


def config(name: str, top_k: int) -> DistillConfig:
    path = {"path": f"builtin:tiny-{name}"}
    raw = {"stage": "distill", "name": "x", "model": path, "teacher": path, "data": {"train": "rows.jsonl"}}
    settings = {"temperature": T, "cache": {"top_k": top_k}}
    train = {"max_steps": 1, "per_device_eval_batch_size": 2}
    return DistillConfig.model_validate({**raw, "distill": settings, "train": train})


def data_of(name: str) -> TrainingData:
    """Two sources of two rows, and one row to evaluate on."""
    rows = tiny.encode(name)
    sources = [MapSource(rows[:2], [0], True), MapSource(rows[2:4], [1], True)]
    return TrainingData(list(sources), rows[4:], 4, 0, tiny.facts(name).task)


def cached(name: str, top_k: int, folder: Path, data: TrainingData | None = None) -> TrainingData:
    def collator(model: Any) -> Any:
        return tiny.collator(name, model)

    whole, runtime = config(name, top_k), tiny.single_process(folder)
    data, facts = data or data_of(name), tiny.facts(name)
    job = Job(whole, tiny.plan(folder, name, models={"teacher": facts}), runtime, RunFolder(folder))
    return with_cached_teacher(job, CacheSettings(top_k=top_k), data, collator)


def rows_of(data: TrainingData) -> list[Tokens]:
    return [row for rows in (*(source.rows for source in data.whole_sources()), data.validation) for row in rows]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_row_has_what_the_teacher_says_of_it(name: str, tmp_path: Path) -> None:
    """Alone in a batch, from all logits. BART's head is not plain."""
    teacher = tiny.model(name).eval()
    found = rows_of(cached(name, 5, tmp_path))
    assert [len(row.input_ids) for row in found] == [len(row.input_ids) for row in tiny.encode(name)]
    for row in found:
        batch = tiny.collator(name, teacher)([row])
        log_p = (teacher(**batch.inputs).logits[batch.labels != IGNORE] / T).log_softmax(-1)
        assert row.teacher_top_k is not None
        ids, log_probs = (torch.from_numpy(np.array(part)) for part in row.teacher_top_k)
        assert ids.shape == (batch.num_labels, 5) and (ids.dtype, log_probs.dtype) == (torch.int32, torch.float32)
        assert torch.allclose(log_probs[:, :5], log_p.gather(1, ids.long()), atol=1e-5)
        assert torch.allclose(log_probs[:, :5], log_p.topk(5).values, atol=1e-5)
        rest = log_p.scatter(1, ids.long(), -torch.inf).logsumexp(1)
        assert torch.allclose(log_probs[:, 5], rest, atol=1e-5)


def test_it_is_written_once(tmp_path: Path) -> None:
    first = rows_of(cached("llama", 3, tmp_path))
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "teacher/top_k").iterdir()}
    assert len(files) == 3
    again = rows_of(cached("llama", 3, tmp_path))
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "teacher/top_k").iterdir()}
    for one, other in zip(first, again, strict=True):
        assert one.teacher_top_k is not None and other.teacher_top_k is not None
        assert all(map(np.array_equal, one.teacher_top_k, other.teacher_top_k))
    changed = data_of("llama")
    changed.validation.pop()
    assert len(rows_of(cached("llama", 3, tmp_path, changed))) == 4
    assert all(file.stat().st_mtime_ns != written for file, written in files.items()), "other rows have other opinions"


def test_it_is_of_one_teacher(tmp_path: Path) -> None:
    """Another one that was accepted says something else."""
    index, seen = tmp_path / "teacher/top_k" / INDEX, []
    for mark in ("one", "one", "other"):
        RunData(sources={}, places={"teacher.path": {"model.safetensors": mark}}).save(tmp_path / "data.json")
        cached("llama", 3, tmp_path)
        seen.append(index.stat().st_mtime_ns)
    assert seen[0] == seen[1] != seen[2]


def test_half_a_cache_is_none(tmp_path: Path) -> None:
    whole = rows_of(cached("llama", 3, tmp_path / "whole"))
    place = tmp_path / "half/teacher/top_k"
    aside = aside_of(place)
    aside.mkdir(parents=True)
    for file in (tmp_path / "whole/teacher/top_k").iterdir():
        (aside / file.name).write_bytes(file.read_bytes()[:200])
    (aside / "ids-7.npy").write_bytes(b"of a start with more ranks")
    for one, other in zip(whole, rows_of(cached("llama", 3, tmp_path / "half")), strict=True):
        assert one.teacher_top_k is not None and other.teacher_top_k is not None
        assert all(map(np.array_equal, one.teacher_top_k, other.teacher_top_k))
    assert sorted(file.name for file in place.iterdir()) == ["ids-0.npy", INDEX, "log_probs-0.npy"]
    assert not aside.exists()


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_any_number_of_processes_writes_for_any_other(parts: int, tmp_path: Path) -> None:
    """Also more than there are rows: their files are empty."""
    cache, counts = Cache(tmp_path / "top_k", 2, "mark"), np.array([2, 1, 3, 1, 2])
    aside = aside_of(cache.folder)
    aside.mkdir()
    for part in range(parts):
        own = range(part, len(counts), parts)
        ids, log_probs = cache.part(part, int(sum(counts[row] for row in own)))
        numbers = np.repeat(list(own), [counts[row] for row in own])[:, None]
        ids.write(0, np.tile(numbers, (1, 2)))
        log_probs.write(0, np.tile(-numbers, (1, 3)))
        ids.flush(), log_probs.flush()
    write_json(aside / INDEX, {"parts": parts, "fingerprint": "mark"})
    assert not cache.is_written()
    aside.rename(cache.folder)
    assert cache.is_written() and not replace(cache, fingerprint="other").is_written()
    found = cache.read(counts)
    assert [ids.tolist() for ids, _ in found] == [[[row] * 2] * count for row, count in enumerate(counts)]
    assert [part.tolist() for _, part in found] == [[[-row] * 3] * count for row, count in enumerate(counts)]


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match=r"distill\.cache\.top_k: 1,000,000,000,000 positions take"):
        _check_disk(Cache(tmp_path / "top_k", 10**6, ""), 10**12)


@pytest.mark.parametrize("name", NAMES)
def test_of_the_whole_vocabulary_it_is_the_teacher(name: str, tmp_path: Path) -> None:
    """Loss and gradients, whatever the order of the rows, with fillers between them."""
    rows = rows_of(cached(name, tiny.facts(name).vocab_size, tmp_path))
    chosen = [rows[3], FILLER, rows[0], rows[4]]
    settings = DistillSettings(temperature=T, alpha=0.6)
    student = teacher_of(name)
    collate = top_k_collator(tiny.collator(name, student), tiny.facts(name).vocab_size)
    wanted = run(
        Distillation(teacher_of(name), tiny.model(name), settings).train(), tiny.collator(name, student)(chosen)
    )
    alone = CachedDistillation(student, settings).train()
    assert alone.is_fused == (name != "bart")
    assert not [key for key, _ in alone.named_parameters() if not key.startswith("student.")]
    found = run(alone, collate(chosen))  # type: ignore[arg-type]
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1].keys() == wanted[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted[1].values())
    for key, gradient in wanted[1].items():
        assert (found[1][key] - gradient).abs().max() < 2e-5 * largest, key


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_fillers_are_worth_nothing(name: str) -> None:
    alone = CachedDistillation(tiny.model(name), DistillSettings()).train()
    batch = top_k_collator(tiny.collator(name, alone.student), 6)([FILLER, FILLER])
    loss = distillation_loss(alone, batch)
    loss.backward()
    gradients = [p.grad for p in alone.parameters() if p.grad is not None]
    assert loss.item() == 0 and gradients and all(gradient.count_nonzero() == 0 for gradient in gradients)


def test_a_soft_prompt_moves_no_label(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    rows = rows_of(cached("llama", 259, tmp_path))
    found = []
    for teacher in (tiny.model("llama"), None):
        torch.manual_seed(3)
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        student, settings = get_peft_model(teacher_of("llama"), prompt), DistillSettings(temperature=T)
        collate = tiny.collator("llama", student)
        if teacher is None:
            found.append(run(CachedDistillation(student, settings), top_k_collator(collate, 259)(rows)))  # type: ignore[arg-type]
        else:
            found.append(run(Distillation(student, teacher, settings), collate(rows)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1].keys() == found[1][1].keys()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_is_not_among_the_top_k(name: str) -> None:
    rows, model = tiny.encode(name), teacher_of(name)
    collate = tiny.collator(name, model)
    wanted = TopKTeacher(teacher_of(name).eval(), collate, 5, T)(rows, torch.device("cpu"))
    found = TopKTeacher(padded(model, 320).eval(), collate, 5, T, 259)(rows, torch.device("cpu"))
    assert torch.equal(found.ids, wanted.ids)
    assert (found.log_probs - wanted.log_probs).abs().max() < 1e-6
