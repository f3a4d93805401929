"""What is proposed where a run does not fit, on a model of which everything is known: nothing here starts a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from scaleup.errors import ScaleupError
from scaleup.plan.describe import Described
from scaleup.plan.facts import Footprint, MicroBatch, ModelFacts, ModelRequest, Tensors
from scaleup.plan.fit import Fit, propose
from scaleup.plan.machine import Machine, described_machine
from scaleup.plan.proposals import Proposal
from scaleup.plan.resolve import resolve
from scaleup.plan.search import Asked, largest
from scaleup.plan.strategy import FOR_ACTIVATIONS
from scaleup.plan.types import MemoryPlan
from scaleup.reports.fit import show_fit
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

MIB = 2**20
MATRIX = (1024, 1024)
"""Is a parameter of 4 MiB; the model is 16 of them: 256 MiB in DDP with AdamW."""
A_ROW = 24 * MIB
"""Is what a row of a micro-batch takes, an eighth of it where activations are recomputed."""

BATCH = {"train.per_device_train_batch_size": 8, "parallel.num_processes": 2}
Propose = Callable[..., Fit]


def facts_of(model: ModelRequest, micro_batch: MicroBatch | None) -> ModelFacts:
    """A model like `model`, traced in proportion to its rows."""
    tensors: tuple[Tensors, ...] = (Tensors(shape=MATRIX, count=16),)
    if (adapter := model.adapter) is not None:
        base = Tensors(shape=MATRIX, count=16, trainable=False, quantized=model.quantization is not None)
        tensors = (base, Tensors(shape=(8, 1024), count=adapter.r))  # type: ignore[union-attr]
    footprints: tuple[Footprint, ...] = ()
    if micro_batch is not None:
        activations = micro_batch.rows * A_ROW // (8 if micro_batch.gradient_checkpointing else 1)
        gradients = sum(4 * each.elements * each.count for each in tensors if each.trainable)
        moments = ((activations, 0), (0, gradients))
        footprints = tuple(
            Footprint(arithmetic=kind, forward=activations, logits=0, moments=moments)
            for kind in micro_batch.arithmetics
        )
    counts = {
        trained: sum(t.elements * t.count for t in tensors if t.trainable >= trained) for trained in (True, False)
    }
    sizes = {"num_parameters": counts[False], "num_trainable_parameters": counts[True], "largest_block": 1024 * 1024}
    task = FACTS.task if model.task == "auto" else model.task
    more = {"tensors": tensors, "footprints": footprints, "hidden_size": 1024, "task": task}
    return FACTS.model_copy(update={**more, **sizes})


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was asked of the models: facts, and the rows that were tried."""
    asked: list[tuple[str, str]] = []

    def describe(
        models: Mapping[str, ModelRequest], micro_batch: Any = None, readers: Any = None, ask: Any = None
    ) -> Described:
        asked.append((f"{models['model'].model_dump_json()} {micro_batch}", ", ".join(readers or {})))
        found = {where: facts_of(model, micro_batch if where == "model" else None) for where, model in models.items()}
        return Described(found)

    monkeypatch.setattr("scaleup.plan.search.describe_models", describe)
    monkeypatch.setattr("scaleup.plan.resolve.describe_models", describe)
    return asked


@pytest.fixture
def fit(folder: Path, questions: list[tuple[str, str]]) -> Propose:
    """Asks for RAW with dotted keys changed, on GPUs of so many MiB."""

    def ask(changes: dict[str, Any], memory: int, gpus: int = 2, main: int | None = None) -> Fit:
        raw = {key: value for key, value in differing(RAW, {**BATCH, **changes}).items() if value is not None}
        (folder / "x.yaml").write_text(yaml.safe_dump(raw))
        machine = Machine(8, gpus, memory=main, gpu_memory=memory * MIB or None)
        return propose(Asked(folder / "x.yaml", [], []), machine)

    return ask


def by_kind(fit: Fit, kind: str) -> list[Proposal]:
    return [each for each in fit.proposals if each.kind == kind]


@pytest.mark.parametrize(("limit", "found"), [(0, None), (1, 1), (5, 4), (8, 8), (9, 8)])
def test_the_largest_that_fits_is_found(limit: int, found: int | None) -> None:
    assert largest([1, 2, 4, 8], lambda size: size <= limit) == found


def test_the_last_size_may_fit_where_those_before_it_do_not() -> None:
    assert largest([1, 2, 4, 8], lambda size: size in (1, 8)) == 8


def test_a_micro_batch_keeps_the_step(fit: Propose) -> None:
    """DDP holds 256 MiB, and 320 once gradients are added up; 369 are usable."""
    found = fit({}, memory=410)
    assert not found.fits and found.now is not None and found.now.needs > found.usable
    first = found.proposals[0]
    assert first.changes == ("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=4")
    assert (first.strategy, first.micro_batch, first.accumulation, first.recomputed_flops) == ("ddp", 2, 4, 0.0)
    assert first.needs == (256 + 64 + 2 * 24) * MIB
    assert [each.kind for each in found.proposals] == sorted(
        (each.kind for each in found.proposals), key=["same steps", "adapter", "processes"].index
    )


def test_a_global_batch_splits_itself(fit: Propose) -> None:
    found = fit({"train.global_batch_size": 16}, memory=410)
    assert found.proposals[0].changes == ("train.per_device_train_batch_size=2",)


def test_sequences_are_counted_in_tokens(fit: Propose) -> None:
    changes = {"train.per_device_train_batch_size": None, "train.tokens_per_device": 4096, "data.packing": True}
    found = fit(changes, memory=410)
    assert found.proposals[0].changes == ("train.tokens_per_device=1024", "train.gradient_accumulation_steps=4")


def test_filled_micro_batches_stay(fit: Propose) -> None:
    changes = {"train.per_device_train_batch_size": None, "train.tokens_per_device": 4096}
    found = fit(changes, memory=270)
    assert all("tokens" not in change for each in found.proposals for change in each.changes)
    assert any("train.tokens_per_device stays" in note for note in found.notes)


def test_proposals_are_the_nearest(fit: Propose) -> None:
    """None has all the changes of another; those of fewer settings come first, and then of less recomputation."""
    found = by_kind(fit({}, memory=320), "same steps")
    keys = [{change.partition("=")[0] for change in each.changes} for each in found]
    assert len(found) >= 2
    for one in range(len(keys)):
        assert not any(keys[other] < keys[one] for other in range(len(keys)) if other != one)
    recomputing = [each for each in found if each.recomputed_flops]
    assert all(each.recomputed_flops == pytest.approx(1 / 3, abs=0.01) for each in recomputing)


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2", "auto"])
@pytest.mark.parametrize("memory", [100, 180, 300])
def test_every_proposal_fits_and_is_not_refused(fit: Propose, folder: Path, strategy: str, memory: int) -> None:
    found = fit({"parallel.strategy": strategy}, memory=memory)
    assert not found.fits
    for each, row in pasted(found, folder, memory):
        assert row.peak == each.needs
        if each.micro_batch and each.accumulation:
            assert each.micro_batch * each.accumulation * each.num_processes == 16


def pasted(found: Fit, folder: Path, memory: int) -> Iterator[tuple[Proposal, MemoryPlan]]:
    """Plans each proposal like a config of its own, which fits and is not refused, and gives its memory."""
    machine = Machine(8, 2, gpu_memory=memory * MIB)
    for each in found.proposals:
        _, plan = resolve(Asked(folder / "x.yaml", [], []).load(each.overrides), machine, check_run_folder=False)
        assert plan.fitting is not None and plan.groups[0].strategy in plan.fitting
        assert plan.groups[0].strategy == each.strategy
        assert each.needs <= found.usable
        assert not ("quantization=8bit" in each.changes and each.strategy in ("zero3", "fsdp2"))
        yield each, next(row for row in plan.memory if row.strategy == each.strategy)


PPO: dict[str, Any] = {
    "stage": "ppo",
    "data.text": None,
    "data.prompt": "{text}",
    "data.max_length": 64,
    "ppo": {"num_rollouts": 2, "rollout_batch_size": 16, "max_new_tokens": 8},
    "reward": {"placement": "function", "function": "reward.py:score"},
    "train": {"per_device_train_batch_size": 4},
}
REWARD = {"stage": "reward", "data.text": None, "data.chosen": "{text}", "data.rejected": "no {text}"}


@pytest.mark.parametrize(
    ("strategy", "gathers", "memory", "nearest"),
    [
        ("ddp", "auto", 440, "parallel.strategy=fsdp2"),
        ("fsdp2", "auto", 250, "adapter.type=lora"),
        ("fsdp2", True, 260, "parallel.gather_for_generation=auto"),
        ("auto", True, 260, "parallel.gather_for_generation=auto"),
    ],
)
def test_a_policy_fits_with_its_reference(
    fit: Propose, folder: Path, strategy: str, gathers: Any, memory: int, nearest: str
) -> None:
    """Its activations are not planned: micro-batches and recomputation stay. A copy that the config wants in rollouts
    is counted, and need not be made."""
    (folder / "reward.py").write_text("def score(completions, **columns): return [0.0] * len(completions)\n")
    found = fit({**PPO, "parallel.gather_for_generation": gathers, "parallel.strategy": strategy}, memory=memory)
    assert not found.fits and found.usable == int(memory * MIB * (1 - FOR_ACTIVATIONS))
    for each, row in pasted(found, folder, memory):
        assert row.total == each.needs and not each.is_traced and not each.recomputed_flops
        assert not any("batch_size" in change or "checkpointing" in change for change in each.changes)
        assert (row.gathered > 0) <= (each.strategy in ("zero3", "fsdp2"))
    assert found.proposals[0].changes[0] == nearest
    assert len(found.proposals[0].changes) == 1 or nearest.startswith("adapter")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_reward_model_fits(fit: Propose, folder: Path, strategy: str) -> None:
    """Of a pair both texts are rows of the micro-batch."""
    memory = 300 if strategy == "ddp" else 180
    found = fit({**REWARD, "parallel.strategy": strategy}, memory=memory)
    assert not found.fits
    for each, row in pasted(found, folder, memory):
        assert row.peak == each.needs
        assert (each.micro_batch or 0) * (each.accumulation or 0) * each.num_processes == 16
    assert found.proposals


def test_where_auto_finds_nothing(fit: Propose) -> None:
    found = fit({"parallel.strategy": "auto", "train.per_device_train_batch_size": 64}, memory=300)
    assert found.now is None and "nothing fits" in found.why
    assert found.proposals


def test_an_adapter_comes_with_its_base(fit: Propose) -> None:
    found = by_kind(fit({}, memory=200), "adapter")
    assert ["quantization=8bit" in each.changes for each in found] == [True, False]
    assert ["quantization=4bit" in each.changes for each in found] == [False, True]
    assert all(each.changes[:2] == ("adapter.type=lora", "adapter.target_modules=all-linear") for each in found)
    assert all(each.trainable < 0.01 for each in found)


def test_an_adapter_or_processes_have_a_use(fit: Propose) -> None:
    """None comes with changes that are enough without it."""
    found = fit({}, memory=410)
    enough = [set(each.changes) for each in by_kind(found, "same steps")]
    for each in (*by_kind(found, "adapter"), *by_kind(found, "processes")):
        assert not any(set(each.changes) >= changes for changes in enough)


def test_an_adapter_that_is_there_stays(fit: Propose) -> None:
    found = by_kind(fit({"adapter.type": "lora"}, memory=80), "adapter")
    assert found and all("adapter.type=lora" not in each.changes for each in found)


def test_more_processes_keep_the_step(fit: Propose) -> None:
    """On the GPUs of the node first, then on a second node."""
    [first, *_] = by_kind(fit({}, gpus=4, memory=330), "processes")
    assert first.changes[:1] == ("parallel.num_processes=4",) and first.num_nodes == 1
    [first, *_] = by_kind(fit({}, gpus=2, memory=330), "processes")
    assert first.changes[:2] == ("parallel.num_processes=4", "parallel.num_nodes=2")
    assert (first.micro_batch or 0) * (first.accumulation or 0) * first.num_processes == 16


def test_on_cpus_memory_comes_with_nodes_and_nothing_is_offloaded(fit: Propose) -> None:
    found = fit({"parallel.device": "cpu"}, 0, 0, main=2 * 330 * MIB)
    assert not any("offload" in change for each in found.proposals for change in each.changes)
    assert all(each.num_nodes == each.num_processes // 2 for each in by_kind(found, "processes"))


def test_offloading_says_what_it_assumes(fit: Propose) -> None:
    changes = {"parallel.strategy": "zero2", "train.per_device_train_batch_size": 1}
    found = fit(changes, memory=400)
    [offloads] = [each for each in found.proposals if each.changes == ("parallel.offload_optimizer=true",)]
    assert offloads.host > 0 and offloads.offload > 0
    assert any(note.startswith("assumed: nodes have") for note in found.notes)
    assert not any(note.startswith("assumed") for note in fit(changes, memory=400, main=2**40).notes)
    little = fit(changes, memory=400, main=2**20)
    assert not any("offload" in change for each in little.proposals for change in each.changes)


def test_devices_are_used_better(fit: Propose) -> None:
    changes = {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 8}
    found = fit({**changes, "gradient_checkpointing": True}, memory=500)
    assert found.fits and found.now is not None
    bigger, whole = found.proposals
    assert bigger.changes == ("train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1")
    assert whole.changes[0] == "gradient_checkpointing=false" and whole.recomputed_flops == 0
    assert bigger.needs == (256 + 24) * MIB and whole.needs == (256 + 192) * MIB <= found.usable


def test_a_micro_batch_that_is_the_whole_step_cannot_grow(fit: Propose) -> None:
    found = fit({}, memory=4000)
    assert found.fits and not found.proposals
    assert found.notes == ("the micro-batch is a rank's whole step",)


def test_models_are_described_once_each_and_the_rows_once(fit: Propose, questions: list[tuple[str, str]]) -> None:
    fit({}, memory=120)
    assert len(questions) == len({question for question, _ in questions}) > 4
    assert [rows for _, rows in questions if rows] == [rows for _, rows in questions[:1] if rows]


def test_mistakes_are_those_of_the_plan(fit: Propose) -> None:
    with pytest.raises(ScaleupError) as caught:
        fit({"train.max_step": 3, "parallel.strategy": "single"}, memory=300)
    assert [problem.where for problem in caught.value.problems] == ["train.max_step", "parallel.strategy"]


def test_what_trains_nothing_is_refused(fit: Propose) -> None:
    with pytest.raises(ScaleupError, match="--fit: stage generate trains nothing"):
        fit({"stage": "generate", "train": None, "parallel.num_processes": 1, "generation.prompts": ["a"]}, memory=300)


def test_memory_that_is_not_known_is_refused(fit: Propose) -> None:
    with pytest.raises(ScaleupError, match="--gpu-memory 80"):
        fit({}, memory=0)


def test_a_recovery_is_changed_by_its_own_keys(fit: Propose) -> None:
    recovery = {"train": {"max_steps": 2, "per_device_train_batch_size": 8}}
    pruned = {"stage": "prune", "train": None, "prune": {"layers": 1, "layer_score": "uniform"}, "recovery": recovery}
    found = fit(pruned, memory=490)
    assert not found.fits
    assert found.proposals[0].changes == (
        "recovery.train.per_device_train_batch_size=2",
        "recovery.train.gradient_accumulation_steps=4",
    )


def test_what_is_pasted_is_what_the_file_does_not_say(fit: Propose, folder: Path) -> None:
    fit({}, memory=300)
    machine, changes = described_machine(4, 1.0, None, ["train.max_steps=2"])
    asked = Asked(folder / "x.yaml", ["train.max_steps=2"], changes)
    assert asked.pasted(("train.max_steps=3",)) == ("train.max_steps=3", "parallel.num_processes=4")
    assert machine.num_gpus == 4


def test_it_is_shown(fit: Propose, capsys: pytest.CaptureFixture[str]) -> None:
    found = fit({}, memory=410)
    show_fit(Console(width=60), Path("x.yaml"), found)
    shown = capsys.readouterr().out
    assert shown.startswith("does not fit (of the 369 MiB that a rank can use of its 410 MiB): peak ")
    assert "1. train.per_device_train_batch_size=2 train.gradient_accumulation_steps=4\n" in shown
    assert "scaleup run x.yaml" in shown and "micro-batch 2 x accumulation 4" in shown
    assert json.dumps(found.proposals[0].changes)
