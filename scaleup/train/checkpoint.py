"""A run's model, optimizer and state go in; a checkpoint folder comes out, and everything is restored from it.
All ranks write it aside, and rank 0 renames it; in the background, where a copy fits into main memory.

Model, optimizer and loss scale go through Accelerate, which knows each strategy. What another strategy wrote, or
DeepSpeed on another number of processes, is read parameter by parameter instead. The random state and the schedule are
our own files: of the one Accelerate only logs a failure to restore, the other it would unpickle without restriction."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate.utils import MODEL_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LRScheduler

from scaleup.artifacts.checkpoints import (
    IN_MEMORY,
    CheckpointFolder,
    Layout,
    checkpoint_folder,
    damage_of,
    memory_folder,
    newest_sound_checkpoint,
    prune_checkpoints,
)
from scaleup.artifacts.files import aside_of, reason_of
from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.train_state import TrainState
from scaleup.config.schema import OptimizationConfig
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.portable import names_of, source_of
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.train.adalora import RankAllocation
from scaleup.train.background import Work, begin_in_memory, complete, publish

NO_DISK = (torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError)
"""Lists failures while saving that have nothing to do with the disk: as anywhere else, the run may be started again."""

STATE = "train_state.json"
RANKS = "rank_allocation.safetensors"
State = TypeVar("State", bound=TrainState)


class Checkpointer(Generic[State]):
    """Saves and restores the checkpoints of one run. Every rank must make the same calls."""

    state_class: type[State] = TrainState  # type: ignore[assignment]
    """Is the class of what a run begins with and a checkpoint restores; a stage with a state of its own derives a
    class."""

    def __init__(
        self,
        runtime: Runtime,
        run: RunFolder,
        model: Any,
        optimizer: Any,
        schedule: LRScheduler,
        train: OptimizationConfig,
        ranks: RankAllocation | None = None,
    ) -> None:
        """Take `save_total_limit` and `save_minutes` from `train`; when else to save is the loop's to say."""
        self._runtime = runtime
        self._run = run
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._keep = train.save_total_limit
        self._ranks = ranks
        self._seconds = math.inf if train.save_minutes is None else 60 * train.save_minutes
        self._saved_at = time.monotonic()
        self._layout = _layout(runtime, model, optimizer)
        self._in_background = train.async_save
        self._memory = memory_folder(run.path, runtime.rank)
        self._pending: _Pending | None = None
        self.last_step: int | None = None
        """Is the step of the newest checkpoint that is known to be whole."""
        shutil.rmtree(self._memory, ignore_errors=True)  # of a worker that was killed

    def is_time(self) -> bool:
        """Tell whether `save_minutes` have passed since the last checkpoint (or the start), by rank 0's clock. False on
        all other ranks: the caller must share the answer."""
        return self._runtime.is_main and time.monotonic() - self._saved_at >= self._seconds

    def save(self, state: State) -> None:
        """Write a checkpoint of this step, unless there is one. In the background it is not whole yet when this
        returns; the one before is.

        Raises ScaleupError if it, or the one before, cannot be written; earlier checkpoints stay as they are."""
        self.wait()
        if state.step == self.last_step:
            return
        self._runtime.progress.enter_phase("saving")
        checkpoint = CheckpointFolder(checkpoint_folder(self._run.checkpoints, state.step), state.step)
        own, rank = self._own_folder(checkpoint), self._runtime.rank
        self._on_main(lambda: _fresh(aside_of(checkpoint.path)), checkpoint)
        try:
            self._on_all(lambda: self._write(own, state), checkpoint)
        except BaseException as error:
            shutil.rmtree(self._memory, ignore_errors=True)
            if own != self._memory or not isinstance(error, ScaleupError):
                raise
            self._in_background = False  # main memory has no room for it after all
            self.save(state)
            return
        self._pending = _Pending(checkpoint, Work(lambda _: publish(own, checkpoint, rank)))
        if self._runtime.is_main:
            best = state.best_step
            self._pending.completion = Work(lambda is_given_up: self._complete(checkpoint, best, is_given_up))
        self._saved_at = time.monotonic()
        if own != self._memory:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is whole. Raises ScaleupError if it cannot be written. Every
        rank must call it."""
        if (pending := self._pending) is None:
            return
        self._runtime.progress.enter_phase("saving")
        self._pending = None
        try:
            for work in (pending.publication, pending.completion):
                self._on_all(work.result if work else lambda: None, pending.checkpoint, pending)
        finally:
            shutil.rmtree(self._memory, ignore_errors=True)
        self.last_step = pending.checkpoint.step

    def restore(self) -> State:
        """Load the newest sound checkpoint into everything and return its state; a new state if there is none."""
        self._runtime.stop.take_over()  # from here on there is something to save
        newest = sound_checkpoint(self._runtime, self._run)
        if newest is None:
            return self.state_class()
        self.last_step = newest.step
        return self.load(newest)

    def load(self, checkpoint: CheckpointFolder) -> State:
        """Load a checkpoint into everything and return its state."""
        self._runtime.progress.enter_phase("restoring a checkpoint")
        is_direct = self._load_tensors(checkpoint.path)
        if len(list(checkpoint.path.glob("random_state_*"))) == self._runtime.world:  # else ranks draw dropout anew
            _set_random_state(load_file(_random_file(checkpoint.path, self._runtime.rank)))
        if self._ranks is not None:
            self._ranks.load(load_file(checkpoint.path / RANKS))
        state = self.state_class.read(checkpoint.path / STATE)
        self._schedule.load_state_dict(state.schedule)
        if not is_direct:  # else the optimizer's own state holds them
            groups = base_optimizer(self._optimizer).param_groups
            for group, learning_rate in zip(groups, self._schedule.get_last_lr(), strict=True):
                group["lr"] = learning_rate
        return state

    def load_best_weights(self, state: State) -> None:
        """Put the weights of the best evaluation back. Raises ScaleupError when that checkpoint is gone, or
        damaged."""
        assert state.best_step is not None
        self.wait()
        folder = checkpoint_folder(self._run.checkpoints, state.best_step)
        if not folder.is_dir():
            raise ScaleupError.of(
                str(folder), "the best checkpoint is gone", "keep it, or turn load_best_model_at_end off"
            )
        best = CheckpointFolder(folder, state.best_step)
        damage = damage_of(best) if self._runtime.is_main else ""
        if self._runtime.any(bool(damage)):
            what = f"the best checkpoint is damaged: {damage or 'rank 0 says which file'}"
            raise ScaleupError.of(str(folder), what, "turn load_best_model_at_end off, or train again")
        self._load_tensors(folder)

    def _load_tensors(self, folder: Path) -> bool:
        """Load weights and the optimizer's state; return whether the library that wrote them loaded them too."""
        written_by = Layout.read(folder)
        is_direct = written_by.loads_into(self._layout)
        if is_direct:
            self._runtime.load(self._model, folder)
        else:
            self._runtime.put(self._model, self._optimizer, source_of(folder, written_by))
            self._runtime.barrier()
        return is_direct

    def _own_folder(self, checkpoint: CheckpointFolder) -> Path:
        """Return where this rank writes its part of a checkpoint: in main memory, if that has room on every node, or
        beside those of the others, where it belongs."""
        if self._in_background:
            size = _bytes_to_save(self._model, self._optimizer)
            if not self._runtime.any(not begin_in_memory(self._memory, size)):
                return self._memory
            what = f"a copy of {size / 2**20:,.0f} MiB a rank does not fit into {IN_MEMORY}"
            self._runtime.progress.say(f"checkpoints are written while the training waits: {what}")
            self._in_background = False
        return aside_of(checkpoint.path) / f".rank-{self._runtime.rank}"

    def _write(self, own: Path, state: State) -> None:
        if own != self._memory:
            _fresh(own)
        (own / MODEL_NAME).mkdir()  # DeepSpeed makes it on the first rank only
        self._runtime.save(self._model, own)
        save_file(_random_state(), _random_file(own, self._runtime.rank))
        for pickled in own.glob("random_states_*.pkl"):
            pickled.unlink()
        if self._runtime.is_main:
            state.schedule = self._schedule.state_dict()
            state.save(own / STATE)
            if self._ranks is not None:
                save_file(self._ranks.state(), own / RANKS)
            self._layout.save(own)

    def _complete(self, checkpoint: CheckpointFolder, best: int | None, is_given_up: Callable[[], bool]) -> None:
        complete(checkpoint, range(self._runtime.world), is_given_up)
        prune_checkpoints(self._run.checkpoints, self._keep, also=best)

    def _on_main(self, action: Callable[[], object], checkpoint: CheckpointFolder) -> None:
        self._on_all(action if self._runtime.is_main else lambda: None, checkpoint)

    def _on_all(
        self, action: Callable[[], object], checkpoint: CheckpointFolder, pending: _Pending | None = None
    ) -> None:
        """Run on every rank, and agree on whether it went well: one full disk stops all ranks with one message. What
        is `pending` is given up where it did not."""
        failure: Exception | None = None
        try:
            action()
        except NO_DISK:
            raise
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # torch and safetensors have their own for a full disk
            failure = error
        if not self._runtime.any(failure is not None):
            return
        reason = failure and reason_of(failure, self._run.checkpoints)  # while what was written fills the disk
        if pending is not None:
            pending.give_up()
        shutil.rmtree(aside_of(checkpoint.path), ignore_errors=True)
        kept = (
            f"the last good checkpoint is step {self.last_step}" if self.last_step else "there is no earlier checkpoint"
        )
        what = f"cannot be written ({reason or 'another rank failed'}); {kept}"
        raise ScaleupError.of(
            f"checkpoint {checkpoint.path}", what, "make room on the disk, then continue with --resume"
        ) from failure


@dataclass
class _Pending:
    """Holds what goes on in the background, on one rank, for a checkpoint."""

    checkpoint: CheckpointFolder
    publication: Work
    completion: Work | None = None
    """Is rank 0's."""

    def give_up(self) -> None:
        for work in (self.publication, self.completion):
            if work is not None:
                work.give_up()


def _bytes_to_save(model: Any, optimizer: Any) -> int:
    """Return about how many bytes a rank writes: what its optimizer steps, its state, and as much again as the model
    that computes, where it is another one."""
    steps = base_optimizer(optimizer)
    tensors = [part for group in steps.param_groups for part in group["params"]]
    tensors += [part for state in steps.state.values() for part in state.values() if isinstance(part, torch.Tensor)]
    own = sum(getattr(part, "_local_tensor", part).nbytes for part in tensors)
    return own + sum(getattr(part, "_local_tensor", part).nbytes for part in model.parameters())


def sound_checkpoint(runtime: Runtime, run: RunFolder) -> CheckpointFolder | None:
    """Return the newest checkpoint that is as it was written, as rank 0 sees it, and say why newer ones are not used.
    Every rank must call it. Raises ScaleupError if one cannot be read, or a damaged one not set aside."""
    runtime.progress.enter_phase("looking at checkpoints")
    lines: list[str] = []
    newest, problem = None, None
    if runtime.is_main:
        try:
            newest, lines = newest_sound_checkpoint(run.checkpoints)
        except OSError as error:
            problem = error
    after, wrong = runtime.sum(newest.step + 1 if newest else 0, problem is not None)
    if wrong:
        what = f"one cannot be read, or not set aside ({problem or 'rank 0 says why'})"
        remedy = "mend the file system, or remove that one, then continue with --resume"
        raise ScaleupError.of(f"checkpoints {run.checkpoints}", what, remedy)
    for line in lines:
        runtime.progress.say(line)
    if lines:
        runtime.progress.say(f"the run goes on from {f'step {newest.step}' if newest else 'the start'}")
    step = int(after) - 1
    return CheckpointFolder(checkpoint_folder(run.checkpoints, step), step) if after else None


def _layout(runtime: Runtime, model: Any, optimizer: Any) -> Layout:
    group = runtime.group
    zero = (group.deepspeed or {}).get("zero_optimization", {})
    places = {"optimizer": zero.get("offload_optimizer", {}), "parameters": zero.get("offload_param", {})}
    offload = [what for what, place in places.items() if place.get("device") == "cpu"]
    names = names_of(runtime.accelerator.unwrap_model(model))
    if group.zero_stage is None:
        order = [parameter for part in base_optimizer(optimizer).param_groups for parameter in part["params"]]
    else:  # DeepSpeed's optimizer holds flat tensors, and its files name what is in them
        order = list(names)
    return Layout(group.strategy, group.num_processes, offload, [names[parameter][0] for parameter in order])


def _fresh(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _random_file(folder: Path, rank: int) -> Path:
    return folder / f"random_state_{rank}.safetensors"


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
