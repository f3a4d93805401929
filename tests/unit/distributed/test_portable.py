"""Checkpoints of every strategy, read as whole parameters. What the libraries really write is read by
tests/invariants/test_resume_elsewhere.py; here are the shapes that no tiny model has."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scaleup.artifacts.checkpoints import Layout
from scaleup.distributed import portable
from scaleup.distributed.portable import ZeroSource, names_of, put_into_torch, source_of
from tests.unit.data import tiny

SHAPES = [{"a": (3, 5), "b": (7, 2)}, {"c": (1,), "d": (5,)}]
"""By group. 15, 14, 1 and 5 elements divide neither by 2 nor by 3, and some ranks have nothing of `c`."""


def tensors(seed: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=chance) for group in SHAPES for name, shape in group.items()}


WEIGHTS = tensors(1)
STATE = {
    "adamw": {"exp_avg": tensors(2), "exp_avg_sq": tensors(3)},
    "sgd": {"momentum_buffer": tensors(4)},
    "sgd without momentum": {},
}
STEP = 7.0


def state_of(optimizer: str, name: str) -> dict[str, torch.Tensor]:
    step = {"step": torch.tensor(STEP)} if optimizer == "adamw" else {}
    return step | {key: values[name] for key, values in STATE[optimizer].items()}


def padded(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    return torch.cat([tensor.flatten(), torch.full((-tensor.numel() % multiple,), 99.0)])


def flat(values: dict[str, torch.Tensor], group: dict[str, Any], stage: int, rank: int, world: int) -> torch.Tensor:
    """A rank's piece of a group: ZeRO-3 cuts each parameter, the others cut all of them laid end to end."""
    if stage == 3:
        return torch.cat([padded(values[name], world).chunk(world)[rank] for name in group])
    return padded(torch.cat([values[name].flatten() for name in group]), world).chunk(world)[rank]


def mappings(rank: int, world: int) -> list[dict[str, Any]]:
    """Which part of a rank's piece each parameter is."""
    from deepspeed.utils.tensor_fragment import fragment_address

    mappings_of_groups = []
    for group in SHAPES:
        length = flat(WEIGHTS, group, 2, rank, world).numel()
        mapping, start = {}, -rank * length
        for name in group:
            first, last = max(start, 0), min(start + WEIGHTS[name].numel(), length)
            if first < last:
                mapping[name] = fragment_address(numel=last - first, start=first)
            start += WEIGHTS[name].numel()
        mappings_of_groups.append(mapping)
    return mappings_of_groups


def write_zero(folder: Path, stage: int, world: int, optimizer: str, prefix: str = "") -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    shapes = [OrderedDict((name, torch.Size(shape)) for name, shape in group.items()) for group in SHAPES]
    for rank in range(world):
        states: dict[int, dict[str, Any]] = {}
        for number, group in enumerate(SHAPES):
            state = {key: flat(values, group, stage, rank, world) for key, values in STATE[optimizer].items()}
            states[number] = state | ({"step": torch.tensor(STEP)} if optimizer == "adamw" else {})
        weights = [flat(WEIGHTS, group, stage, rank, world) for group in SHAPES]
        inner: dict[str, Any] = {"loss_scaler": LossScaler(1.0)}
        if stage == 3:
            inner |= {"fp32_flat_groups": weights, "optimizer_state_dict": {"state": states}}
        else:
            inner |= {"single_partition_of_fp32_groups": weights, "base_optimizer_state": {"state": states}}
            inner |= {"param_slice_mappings": mappings(rank, world)}
        torch.save({"optimizer_state_dict": inner}, folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        model_file = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
        torch.save({"param_shapes": shapes}, folder / model_file)


def check(source: portable.Source, optimizer: str) -> None:
    for name, weight in WEIGHTS.items():
        whole = source.parameter((name,))
        assert torch.equal(whole.weight, weight)
        assert whole.moments.keys() == STATE[optimizer].keys()
        assert all(torch.equal(moment, STATE[optimizer][key][name]) for key, moment in whole.moments.items())
        assert whole.step == (STEP if optimizer == "adamw" else None)


@pytest.mark.parametrize("optimizer", STATE)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("stage", [2, 3])
def test_what_zero_ranks_wrote(tmp_path: Path, stage: int, world: int, optimizer: str) -> None:
    write_zero(tmp_path, stage, world, optimizer, "bf16_" if world == 2 else "")
    check(ZeroSource(tmp_path, world), optimizer)


def test_ranks_are_put_together_in_their_order(tmp_path: Path) -> None:
    """Beyond 9, not in the order of their files' names."""
    write_zero(tmp_path, 3, 12, "adamw")
    check(ZeroSource(tmp_path, 12), "adamw")


@pytest.mark.parametrize("optimizer", STATE)
def test_what_torch_distributed_wrote(tmp_path: Path, optimizer: str) -> None:
    from torch.distributed.checkpoint import save

    save({"model": WEIGHTS}, checkpoint_id=tmp_path / "pytorch_model_fsdp_0", no_dist=True)
    states = {name: state_of(optimizer, name) for name in WEIGHTS}
    save({"optimizer": {"state": states}}, checkpoint_id=tmp_path / "optimizer_0", no_dist=True)
    check(source_of(tmp_path, Layout("fsdp2", 2, [], list(WEIGHTS))), optimizer)


def write_replicated(folder: Path, optimizer: str) -> list[str]:
    """The names in the optimizer's order, which is another than the model's."""
    save_file(WEIGHTS, folder / "model.safetensors")
    order = sorted(WEIGHTS, reverse=True)
    torch.save({"state": {i: state_of(optimizer, name) for i, name in enumerate(order)}}, folder / "optimizer.bin")
    return order


@pytest.mark.parametrize("optimizer", STATE)
def test_what_one_process_wrote(tmp_path: Path, optimizer: str) -> None:
    check(source_of(tmp_path, Layout("ddp", 2, [], write_replicated(tmp_path, optimizer))), optimizer)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    write_zero(tmp_path, 2, 1, "adamw")
    torch.save({"optimizer_state_dict": Evil(tmp_path / "executed")}, min(tmp_path.glob("*optim_states.pt")))
    with pytest.raises(pickle.UnpicklingError):
        ZeroSource(tmp_path, 1)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_shared_weights_have_all_their_names(name: str) -> None:
    model = tiny.model(name)
    next(model.parameters()).requires_grad_(False)
    names = names_of(model)
    trained = [(key, parameter) for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert [(first, parameter) for parameter, (first, *_) in names.items()] == trained
    assert all(model.get_parameter(other) is parameter for parameter, own in names.items() for other in own)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_put_into_an_optimizer_is_what_it_steps_from(tmp_path: Path, optimizer: str) -> None:
    """Two more steps from there are those of the optimizer that was saved."""

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.ones_like(w)) for name, w in WEIGHTS.items()})
        if optimizer == "sgd":
            return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)

    def steps(model: torch.nn.Module, stepper: torch.optim.Optimizer) -> None:
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = parameter.detach().cos()
            stepper.step()

    model, stepper = build()
    steps(model, stepper)
    order = [name for name, _ in model.named_parameters()]
    save_file(
        {name: parameter.detach() for name, parameter in model.named_parameters()}, tmp_path / "model.safetensors"
    )
    torch.save(stepper.state_dict(), tmp_path / "optimizer.bin")
    other, other_stepper = build()
    put_into_torch(source_of(tmp_path, Layout("single", 1, [], order)), other, other_stepper)
    steps(model, stepper)
    steps(other, other_stepper)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_stage_3_shares_are_padded_at_the_end(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = WEIGHTS["a"]
    length = -(-weight.numel() // world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        zero = SimpleNamespace(
            grad_position={5: (1, 40, length)}, get_param_id=lambda _: 5, fp32_partitioned_groups_flat=["first", "flat"]
        )
        [(target, start, part)] = portable._stage3_flat_slices(zero, weight, weight)
        assert (target, start) == ("flat", 40)
        parts.append(part)
    assert torch.equal(torch.cat(parts), weight.flatten())
