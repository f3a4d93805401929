"""AdaLoRA's ranks between steps: restored to the last bit, settled in the end, and left alone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter

from scaleup.artifacts.checkpoints import latest_checkpoint
from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.train_state import TrainState
from scaleup.config.adapters import AdapterConfig
from scaleup.config.schema import ModelConfig, TrainConfig
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.sources import MapSource
from scaleup.describe.model import model_facts
from scaleup.distributed.engines import base_optimizer
from scaleup.models.adapted import load_finished, make_trainable
from scaleup.models.adapters import save_adapter
from scaleup.models.load import load_model
from scaleup.train.adalora import RankAllocation
from scaleup.train.checkpoint import RANKS, Checkpointer
from scaleup.train.losses import token_loss_sum
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.step import train_step
from tests.unit.data import tiny

STEPS = 10
ADAPTER = TypeAdapter(AdapterConfig).validate_python(
    {
        "type": "adalora",
        "init_r": 4,
        "target_r": 2,
        "tinit": 2,
        "tfinal": 2,
        "deltaT": 3,
        "target_modules": "all-linear",
    }
)


class Training:
    """A run of tiny-llama as a new process would set it up, or of an adapter that is trained further."""

    def __init__(self, run: RunFolder, further: Path | None = None) -> None:
        self.runtime = tiny.single_process(run.path)
        config = TrainConfig(max_steps=STEPS, learning_rate=0.01, save_total_limit=9)
        self.facts = model_facts(ModelConfig(path=str(further))) if further else tiny.facts("llama")
        base = load_model(ModelConfig(path=self.facts.location), self.facts)
        torch.manual_seed(0)
        self.model = make_trainable(base, self.facts, None if further else ADAPTER).train()
        rows = MapSource(tiny.encode("llama"), [0, 0], shuffle=True)
        self.loader = TrainLoader([rows], [1.0], tiny.collator("llama", self.model), Split(2, 2, 0, 1), None)
        self.wrapped, self.optimizer = self.runtime.prepare(self.model, build_optimizer(self.model, config))
        self.ranks = RankAllocation(self.model, base_optimizer(self.optimizer), None if further else STEPS)
        schedule = build_schedule(base_optimizer(self.optimizer), config, STEPS)
        self.checkpointer = Checkpointer(self.runtime, run, self.wrapped, self.optimizer, schedule, config, self.ranks)
        self.state = TrainState()

    def go(self, last: int) -> list[float]:
        found = []
        while self.state.step < last:
            batches = self.loader.batches(self.state.step)
            result = train_step(
                self.runtime, self.wrapped, self.optimizer, batches, token_loss_sum, 1.0, self.ranks.penalty
            )
            self.state.step += 1
            found.append(result.loss)
        return found

    def singular(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if "lora_E" in name}

    @property
    def num_ranks(self) -> int:
        return sum(int((values != 0).sum()) for values in self.singular().values())


@pytest.mark.parametrize("stop", [1, 4, 7, 9])
def test_a_restored_run_is_the_run(run: RunFolder, stop: int) -> None:
    """Before ranks go down, between two allotments, right before they are settled and after."""
    straight = Training(run)
    straight.go(stop)
    straight.checkpointer.save(straight.state)
    straight.checkpointer.wait()
    expected = straight.go(STEPS)
    resumed = Training(run)
    resumed.state = resumed.checkpointer.restore()
    assert resumed.state.step == stop
    assert resumed.go(STEPS) == expected
    assert all(torch.equal(p, q) for p, q in zip(resumed.model.parameters(), straight.model.parameters(), strict=True))
    pattern = straight.model.active_peft_config.rank_pattern
    assert resumed.model.active_peft_config.rank_pattern == pattern
    assert straight.num_ranks == 2 * len(pattern), "the wanted ranks are left"


def test_what_was_weighed_decides_what_is_masked(run: RunFolder) -> None:
    """A run that goes on without its averages takes other ranks away: they have to be in the checkpoint."""
    straight = Training(run)
    straight.go(4)
    straight.checkpointer.save(straight.state)
    straight.checkpointer.wait()
    straight.go(STEPS)
    checkpoint = latest_checkpoint(run.checkpoints)
    assert checkpoint is not None and (checkpoint.path / RANKS).is_file()
    forgetful = Training(run)
    forgetful.checkpointer._ranks = None
    forgetful.state = forgetful.checkpointer.restore()
    forgetful.ranks._step = 4
    forgetful.go(STEPS)
    assert forgetful.model.active_peft_config.rank_pattern != straight.model.active_peft_config.rank_pattern


def test_ranks_go_down_by_the_schedule(run: RunFolder) -> None:
    """tinit 2, deltaT 3: at steps 3 and 6 in part; settled at 8 = 10 - tfinal, and masked from then on."""
    training = Training(run)
    found = [(training.go(step), training.num_ranks)[1] for step in range(1, STEPS + 1)]
    most = 4 * len(training.singular())
    assert found[:2] == [most] * 2
    assert most > found[2] > found[5] > found[7] == found[9] == most // 2


def test_a_finished_adapter_keeps_its_ranks_when_it_is_trained_further(run: RunFolder, tmp_path: Path) -> None:
    first = Training(run)
    first.go(STEPS)
    save_adapter(first.model, tmp_path / "a", first.runtime.trained_state(first.wrapped))
    further = Training(run, tmp_path / "a")
    assert sum(len(values) for values in further.singular().values()) == first.num_ranks
    trainable, number = further.model.get_nb_trainable_parameters()
    assert (further.facts.num_trainable_parameters, further.facts.num_parameters) == (trainable, number)
    batch = tiny.collator("llama", further.model)(tiny.encode("llama"))
    before = logits(first.model, batch)
    finished = load_finished(ModelConfig(path=str(tmp_path / "a")), further.facts, None, "no", torch.device("cpu"))
    assert torch.equal(logits(further.model, batch), logits(finished, batch))
    assert torch.allclose(logits(finished, batch), before, atol=1e-5, rtol=0), "sums without what was masked"
    further.model.train()
    shapes = [values.shape for values in further.singular().values()]
    start = further.singular()
    kept = {name: values.clone() for name, values in start.items()}
    further.go(4)
    assert [values.shape for values in further.singular().values()] == shapes
    assert all(not torch.equal(values, kept[name]) for name, values in further.singular().items() if len(values))
    save_adapter(further.model, tmp_path / "b", further.runtime.trained_state(further.wrapped))
    again = PeftModel.from_pretrained(tiny.model("llama"), tmp_path / "b")
    assert torch.equal(logits(again, batch), logits(further.model, batch))


def logits(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch.inputs).logits
