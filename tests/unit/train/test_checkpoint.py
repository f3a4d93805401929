"""Everything the next step depends on, saved and restored, and nothing that can run code."""

import pickle
from pathlib import Path

import pytest
import torch

from scaleup.artifacts.checkpoints import latest_checkpoint
from scaleup.artifacts.train_state import TrainState
from scaleup.config.schema import TrainConfig
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.sources import MapSource
from scaleup.errors import ScaleupError
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.losses import token_loss_sum
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.step import train_step
from tests.unit.data import tiny

STEPS = 6


class Training:
    """A run as a new process would set it up."""

    def __init__(self, run, name="llama", keep=9, dropout=0.0):
        self.runtime = tiny.single_process(run.path)
        config = TrainConfig(max_steps=STEPS, learning_rate=0.01, lr_scheduler_type="cosine", warmup_steps=2)
        self.model = tiny.model(name).train()
        self.dropout = dropout
        rows = MapSource(tiny.encode(name), [0, 0], shuffle=True)
        self.loader = TrainLoader([rows], [1.0], tiny.collator(name, self.model), Split(2, 1, 0, 1), None)
        optimizer = build_optimizer(self.model, config)
        self.schedule = build_schedule(optimizer, config, STEPS)
        self.model, self.optimizer = self.runtime.prepare(self.model, optimizer)
        settings = config.model_copy(update={"save_total_limit": keep})
        self.checkpointer = Checkpointer(self.runtime, run, self.model, self.optimizer, self.schedule, settings)
        self.state = TrainState()

    def save(self):
        self.checkpointer.save(self.state)
        self.checkpointer.wait()

    def objective(self, model, batch):
        return token_loss_sum(model, batch) * (1 + self.dropout * torch.rand(()))

    def go(self, last):
        losses = []
        while self.state.step < last:
            batches = self.loader.batches(self.state.step)
            result = train_step(self.runtime, self.model, self.optimizer, batches, self.objective, 1.0)
            self.schedule.step()
            self.state.step += 1
            self.state.num_tokens += result.num_tokens
            losses.append(result.loss)
        return losses


@pytest.mark.parametrize("name", ["llama", "qwen2", "t5", "bart"])
def test_a_restored_run_is_the_run(run, name):
    """To the last bit, with randomness in it; also for models that tie weights."""
    torch.manual_seed(5)
    straight = Training(run, name, dropout=0.5)
    straight.go(3)
    straight.state.note_evaluation(1.5, 0.0)
    straight.save()
    expected = straight.go(STEPS)

    torch.manual_seed(99)
    resumed = Training(run, name, dropout=0.5)
    resumed.state = resumed.checkpointer.restore()
    assert (resumed.state.step, resumed.state.best_metric, resumed.state.best_step) == (3, 1.5, 3)
    assert resumed.checkpointer.last_step == 3
    assert resumed.go(STEPS) == expected
    assert resumed.state.num_tokens == straight.state.num_tokens
    assert resumed.schedule.get_last_lr() == straight.schedule.get_last_lr()
    weights = straight.model.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in resumed.model.state_dict().items())
    moments = straight.optimizer.state_dict()["state"]
    assert moments.keys() == resumed.optimizer.state_dict()["state"].keys() and moments
    for number, moment in resumed.optimizer.state_dict()["state"].items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(moments[number][key])) for key, value in moment.items()
        )


def test_a_new_run_has_nothing_to_restore(run):
    training = Training(run)
    assert training.checkpointer.restore() == TrainState()
    assert training.checkpointer.last_step is None


def is_pickle(file: Path) -> bool:
    """Pickled directly, or in the zip files of torch.save."""
    start = file.read_bytes()[:4]
    return start[:1] == b"\x80" or start == b"PK\x03\x04"


def test_what_is_pickled(run):
    """Only what Accelerate itself loads without trusting it."""
    training = Training(run)
    training.go(1)
    training.save()
    folder = latest_checkpoint(run.checkpoints).path
    assert {file.name for file in folder.iterdir() if is_pickle(file)} <= {"optimizer.bin", "scaler.pt"}
    assert not list(folder.glob("*.pkl"))
    assert {"model.safetensors", "random_state_0.safetensors", "train_state.json", "checkpoint.json"} <= {
        file.name for file in folder.iterdir()
    }
    torch.load(folder / "optimizer.bin", weights_only=True)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", ["optimizer.bin", "random_states_0.pkl"])
def test_code_in_a_checkpoint_is_not_run(run, tmp_path, file):
    training = Training(run)
    training.go(1)
    training.save()
    checkpoint = latest_checkpoint(run.checkpoints)
    mark = tmp_path / "executed"
    (checkpoint.path / file).write_bytes(pickle.dumps(Evil(mark), protocol=2))
    if file == "optimizer.bin":
        with pytest.raises(pickle.UnpicklingError):
            training.checkpointer.load(checkpoint)
    else:  # Accelerate would load its own random states; the checkpoint has none, and ours are plain tensors
        training.checkpointer.load(checkpoint)
    assert not mark.exists()
    pickle.loads((checkpoint.path / file).read_bytes())  # noqa: S301
    assert mark.exists(), "it does something where it is trusted"


def test_only_the_last_checkpoints_and_the_best_stay(run):
    training = Training(run, keep=2)
    for step in range(1, 6):
        training.go(step)
        if step == 2:
            training.state.note_evaluation(1.0, 0.0)
        training.save()
    assert sorted(folder.name for folder in run.checkpoints.iterdir()) == [f"step-{step:08d}" for step in (2, 4, 5)]
    weights = {key: weight.clone() for key, weight in training.model.state_dict().items()}
    training.checkpointer.load_best_weights(training.state)
    assert any(not torch.equal(weight, weights[key]) for key, weight in training.model.state_dict().items())


def test_a_best_checkpoint_that_is_gone(run):
    training = Training(run)
    training.state.best_step = 7
    with pytest.raises(ScaleupError, match="the best checkpoint is gone"):
        training.checkpointer.load_best_weights(training.state)


def test_a_checkpoint_that_cannot_be_written_costs_no_earlier_one(run, monkeypatch):
    training = Training(run)
    training.go(1)
    training.save()
    training.go(2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("scaleup.train.checkpoint.save_file", full)
        with pytest.raises(ScaleupError, match=r"No space left on device.*the last good checkpoint is step 1"):
            training.save()
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["step-00000001"]
    training.save()
    assert latest_checkpoint(run.checkpoints).step == 2


def test_a_full_disk_is_named_where_torch_speaks_of_its_archive(run, monkeypatch):
    training = Training(run)
    training.go(1)

    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr("scaleup.train.checkpoint.save_file", full)
    monkeypatch.setattr("scaleup.artifacts.files.write_problem", lambda folder: "No space left on device")
    with pytest.raises(ScaleupError, match=r"cannot be written \(No space left on device\); there is no earlier"):
        training.checkpointer.save(training.state)


def test_what_is_nobodys_disk_is_no_mistake_of_the_user(run, monkeypatch):
    """A device that fails while saving: the run may be started again."""
    training = Training(run)
    training.go(1)

    def failing(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("scaleup.train.checkpoint.save_file", failing)
        with pytest.raises(torch.OutOfMemoryError):
            training.save()
    assert latest_checkpoint(run.checkpoints) is None


def test_a_damaged_checkpoint_is_passed_over_and_its_steps_are_taken_again(run, capsys):
    """One flipped bit of a weight: no size tells, and the run would go on wrong."""
    straight = Training(run, keep=9)
    straight.go(1)
    straight.save()
    straight.go(2)
    straight.save()
    expected = straight.go(3)
    weights = run.checkpoints / "step-00000002/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1 << 6
    weights.write_bytes(content)

    resumed = Training(run, keep=9)
    resumed.state = resumed.checkpointer.restore()
    assert (resumed.state.step, resumed.checkpointer.last_step) == (1, 1)
    assert capsys.readouterr().out.splitlines() == [
        "checkpoint step-00000002 is not used: model.safetensors does not match its checksum; "
        "it is step-00000002.damaged now",
        "the run goes on from step 1",
    ]
    resumed.go(2)
    resumed.save()
    assert resumed.go(3) == expected
    assert latest_checkpoint(run.checkpoints).step == 2


def test_a_damaged_best_checkpoint_is_not_put_back(run):
    training = Training(run)
    training.go(1)
    training.state.note_evaluation(1.0, 0.0)
    training.save()
    weights = run.checkpoints / "step-00000001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ScaleupError, match="the best checkpoint is damaged: model"):
        training.checkpointer.load_best_weights(training.state)
