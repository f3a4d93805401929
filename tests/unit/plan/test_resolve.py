from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaleup.config.load import load_mapping
from scaleup.errors import ScaleupError
from scaleup.plan.facts import ModelFacts
from scaleup.plan.resolve import resolve
from scaleup.plan.types import Plan

MakePlan = Callable[..., Plan]


class TestBatches:
    @given(
        micro=st.integers(1, 9),
        accumulation=st.none() | st.integers(1, 9),
        processes=st.integers(1, 9),
        passes=st.none() | st.integers(1, 9),
        epochs=st.none() | st.integers(1, 5),
        fraction=st.none() | st.sampled_from([0.1, 0.25, 0.99]),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_the_product_is_the_global_batch(
        self,
        plan: MakePlan,
        micro: int,
        accumulation: int | None,
        processes: int,
        passes: int | None,
        epochs: int | None,
        fraction: float | None,
    ) -> None:
        train: dict[str, Any] = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
        train |= {"num_train_epochs": epochs} if epochs else {"max_steps": 7}
        if passes and accumulation is None:
            train["global_batch_size"] = micro * processes * passes
        changes = {"train": train, "parallel.num_processes": processes, "data.validation_fraction": fraction}
        batch = plan(changes).batch
        assert batch is not None
        assert batch.micro_batch * batch.accumulation * processes == batch.global_batch
        assert batch.accumulation == (accumulation or passes or 1)
        held = {None: 0, 0.1: 1, 0.25: 2, 0.99: 9}[fraction]
        assert batch.num_train_rows == 10 - held
        assert batch.num_steps is not None
        if epochs:
            rows = epochs * (10 - held)
            assert (batch.num_steps - 1) * batch.global_batch < rows <= batch.num_steps * batch.global_batch
        else:
            assert batch.num_steps == 7

    def test_by_default_there_is_no_accumulation(self, plan: MakePlan) -> None:
        batch = plan().batch
        assert batch is not None
        assert (batch.micro_batch, batch.accumulation, batch.global_batch) == (8, 1, 8)

    def test_accumulation_that_a_global_batch_asks_for(self, plan: MakePlan) -> None:
        batch = plan({"train.global_batch_size": 48, "parallel.num_processes": 3}).batch
        assert batch is not None
        assert (batch.micro_batch, batch.accumulation) == (8, 2)

    def test_rows_of_all_sources(self, plan: MakePlan) -> None:
        changes = {"data.train": ["rows.jsonl", {"path": "more.jsonl", "max_rows": 2}], "train.max_steps": None}
        batch = plan({**changes, "train.num_train_epochs": 1.5, "train.per_device_train_batch_size": 5}).batch
        assert batch is not None
        assert (batch.num_train_rows, batch.num_steps) == (12, 4)  # 18 rows

    def test_each_source_holds_out_its_own_share(self, plan: MakePlan) -> None:
        batch = plan({"data.train": ["rows.jsonl", "more.jsonl"], "data.validation_fraction": 0.2}).batch
        assert batch is not None
        assert batch.num_train_rows == (10 - 2) + (3 - 1)

    def test_streamed_and_hub_rows_are_not_counted(self, plan: MakePlan) -> None:
        for changes in ({"data.streaming": True}, {"data.train": ["rows.jsonl", "some/dataset"]}):
            batch = plan(changes).batch
            assert batch is not None
            assert (batch.num_train_rows, batch.num_steps) == (None, 4)
        batch = plan({"data.train": "some/dataset", "train": {"num_train_epochs": 2}}).batch
        assert batch is not None
        assert batch.num_steps is None


class TestGroup:
    def test_one_process(self, plan: MakePlan) -> None:
        [group] = plan().groups
        assert (group.name, group.num_processes, group.num_nodes) == ("policy", 1, 1)
        assert (group.device, group.backend, group.strategy) == ("cpu", "gloo", "single")
        assert (group.distributed_type, group.engine, group.zero_stage) == ("NO", "none", None)
        assert group.threads_per_process == 8

    def test_processes_on_the_cpu(self, plan: MakePlan) -> None:
        [group] = plan({"parallel.num_processes": 3}).groups
        assert (group.device, group.backend, group.strategy) == ("cpu", "gloo", "ddp")
        assert (group.distributed_type, group.engine) == ("MULTI_CPU", "DistributedDataParallel")
        assert group.threads_per_process == 2

    def test_more_processes_than_cores_have_a_thread_each(self, plan: MakePlan) -> None:
        assert plan({"parallel.num_processes": 99}).groups[0].threads_per_process == 1

    def test_gpus(self, plan: MakePlan) -> None:
        [group] = plan({"parallel.num_processes": 2, "mixed_precision": "fp16"}, num_gpus=2).groups
        assert (group.device, group.backend, group.distributed_type) == ("cuda", "nccl", "MULTI_GPU")
        assert group.mixed_precision == "fp16"

    def test_the_cpu_of_a_machine_with_gpus(self, plan: MakePlan) -> None:
        [group] = plan({"parallel.device": "cpu"}, num_gpus=2).groups
        assert (group.device, group.backend) == ("cpu", "gloo")

    def test_more_processes_than_gpus(self, plan: MakePlan) -> None:
        with pytest.raises(ScaleupError, match="3 processes need 3 GPUs, and this machine has 2"):
            plan({"parallel.num_processes": 3}, num_gpus=2)

    def test_nodes(self, plan: MakePlan) -> None:
        parallel = {"num_processes": 4, "num_nodes": 2, "main_address": "n0", "main_port": 29500, "device": "cuda"}
        [group] = plan({"parallel": parallel}).groups  # rendered where there are no GPUs, say on a login node
        assert (group.num_nodes, group.num_processes) == (2, 4)
        assert (group.main_address, group.main_port) == ("n0", 29500)
        assert group.threads_per_process == 4


def test_mixtures_say_how_often_a_source_is_read(plan: MakePlan) -> None:
    sources = [{"path": "rows.jsonl", "weight": 3}, {"path": "more.jsonl", "weight": 1}]
    notes = plan({"data.train": sources, "train.max_steps": 5}).notes
    assert notes == [
        "rows.jsonl: 75% of the rows drawn, 3.00 passes over it",
        "more.jsonl: 25% of the rows drawn, 3.33 passes over it",
    ]
    assert plan().notes == []


def test_the_table_has_every_strategy_that_the_run_could_use(plan: MakePlan) -> None:
    def names(changes: dict[str, Any]) -> list[str]:
        return [memory.strategy for memory in plan(changes).memory]

    assert names({}) == ["single", "zero1", "zero2", "zero3", "fsdp2"]
    two = {"parallel.num_processes": 2}
    assert names(two) == ["ddp", "zero1", "zero2", "zero3", "fsdp2"]
    offloads = {**two, "parallel.strategy": "zero3", "parallel.offload_optimizer": True}
    assert names(offloads) == ["zero1", "zero2", "zero3"]
    assert names({**offloads, "parallel.offload_parameters": True}) == ["zero3"]


def test_an_evaluation_has_no_batches_and_no_gradients(plan: MakePlan) -> None:
    made = plan({"stage": "evaluate", "data.test": "rows.jsonl", "baseline": {"path": "gpt2"}, "train": None})
    assert (made.batch, made.models["baseline"], made.notes) == (None, made.model, [])
    assert {(memory.weights, memory.gradients, memory.optimizer) for memory in made.memory} == {(4000, 0, 0)}


def test_a_plan_of_an_earlier_version_is_read(plan: MakePlan) -> None:
    made = plan({"stage": "evaluate", "data.test": "rows.jsonl", "baseline": {"path": "gpt2"}, "train": None})
    values = made.model_dump(mode="json")
    facts = values.pop("models")["baseline"]
    earlier = {"baseline": facts, "teacher": None, "reward": None, "toxicity": None, "variants": {"small": facts}}
    assert Plan.model_validate({**values, **earlier}).models == {"baseline": made.model, "variants.small": made.model}


def test_a_plan_is_read_back_as_it_was(plan: MakePlan, folder: Path) -> None:
    made = plan({"parallel.num_processes": 2})
    made.save(folder / "plan.json")
    assert Plan.read(folder / "plan.json") == made
    assert made.group("policy") is made.groups[0]
    assert made.run_folder == str(folder / "runs" / "x")
    assert json.loads((folder / "plan.json").read_text())["batch"]["global_batch"] == 16


def test_planning_writes_nothing(plan: MakePlan, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    plan()
    assert sorted(folder.rglob("*")) == before


class TestFactsProblems:
    """What only the model's own files can tell."""

    def refusal(self, plan: MakePlan, changes: dict[str, Any], facts: ModelFacts, **known: Any) -> list[str]:
        with pytest.raises(ScaleupError) as caught:
            plan(changes, num_gpus=1, facts=facts.model_copy(update=known))
        return [problem.where for problem in caught.value.problems]

    def test_all_at_once(self, plan: MakePlan, facts: ModelFacts) -> None:
        changes = {"mixed_precision": "fp16", "data.max_length": 600, "model.path": "some/t5"}
        found = self.refusal(plan, changes, facts, model_type="t5", task="seq2seq_lm", tokenizer_size=300)
        assert found == ["mixed_precision", "data.max_length", "model.tokenizer", "data.text"]

    @pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
    def test_no_t5_in_fp16(self, plan: MakePlan, facts: ModelFacts, family: str) -> None:
        changes = {"mixed_precision": "fp16", "model.path": "some/model"}
        assert self.refusal(plan, changes, facts, model_type=family) == ["mixed_precision"]
        plan({**changes, "mixed_precision": "bf16"}, facts=facts.model_copy(update={"model_type": family}))

    def test_positions(self, plan: MakePlan, facts: ModelFacts) -> None:
        assert self.refusal(plan, {"data.max_length": 513}, facts) == ["data.max_length"]
        plan({"data.max_length": 512})
        plan({"data.max_length": 10**6}, facts=facts.model_copy(update={"max_positions": None}))

    def test_a_source_of_its_own_format(self, plan: MakePlan, facts: ModelFacts, folder: Path) -> None:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        (folder / "chat.jsonl").write_text(json.dumps({"turns": chat}) + "\n")
        changes = {"data.train": ["rows.jsonl", {"path": "chat.jsonl", "messages": "turns"}]}
        assert self.refusal(plan, changes, facts, has_chat_template=False) == ["data.messages"]
        plan(changes)


def test_what_the_rows_say_is_among_the_notes(plan: MakePlan, folder: Path) -> None:
    turns = [{"from": "human", "value": "a", "odd": 1}, {"from": "gpt", "value": "b"}]
    (folder / "chat.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    notes = plan({"data": {"train": "chat.jsonl"}}).notes
    assert "data.train.0: rows are read as conversations (columns conversations: from, value)" in notes
    assert "data.train.0: 1 message has the key 'odd', which only the chat template may read" in notes


def test_follow_ons_of_a_faulty_key_are_not_reported(folder: Path) -> None:
    raw = {"stage": "sft", "name": "x", "model": {"path": 3}, "data": 3, "train": {"max_steps": "x"}}
    with pytest.raises(ScaleupError) as caught:
        resolve(load_mapping(raw))
    assert sorted(problem.where for problem in caught.value.problems) == ["data", "model.path", "train.max_steps"]


def test_a_run_folder_is_not_looked_at_when_its_name_is_faulty(folder: Path) -> None:
    (folder / "runs/stand-in/foreign").mkdir(parents=True)
    raw = {"stage": "sft", "model": {"path": "gpt2"}, "data": {"train": "rows.jsonl", "text": "{text}"}}
    with pytest.raises(ScaleupError) as caught:
        resolve(load_mapping({**raw, "train": {"max_steps": 1}}))
    assert [problem.where for problem in caught.value.problems] == ["name"]
