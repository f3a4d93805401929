"""A prepared model that is sharded goes in; a part of it is whole on every rank while a context lasts, gathered once.
Then a forward pass of that part needs no other rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def whole_under_zero3(engine: Any, part: nn.Module) -> Iterator[None]:
    """Gathers the parameters of a part that DeepSpeed's ZeRO-3 shards, and takes off the hooks by which modules would
    give them up after each use, and those of backward passes, of which there is none. Leaving takes no communication,
    so that a rank that fails keeps no other waiting."""
    from deepspeed import zero
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    offload.get_param_coordinator().reset_step()  # as before each forward pass: what is on its way comes first
    sharded = [p for p in part.parameters() if getattr(p, "ds_status", None) is ZeroParamStatus.NOT_AVAILABLE]
    hooks = {handle.id for handle in (*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook)}
    with zero.GatheredParameters(sharded, enabled=bool(sharded)), _without(hooks, engine.module):
        yield


@contextmanager
def _without(hooks: set[int], model: nn.Module) -> Iterator[None]:
    """Takes hooks of forward passes, given by the ids of their handles, off a module and all within it."""
    every = [kept for module in model.modules() for kept in (module._forward_pre_hooks, module._forward_hooks)]
    before = [dict(kept) for kept in every]
    for kept in every:
        for key in hooks & kept.keys():
            del kept[key]
    try:
        yield
    finally:
        for kept, own in zip(every, before, strict=True):
            kept.clear()
            kept.update(own)


@contextmanager
def whole_under_fsdp2(part: nn.Module) -> Iterator[None]:
    """Keeps whole what the first forward pass of a part gathers, all that torch's FSDP2 would shard again after each.
    The root's own parameters, and those of the head, stay whole after any forward pass."""
    from torch.distributed.fsdp import FSDPModule

    modules = [module for module in part.modules() if isinstance(module, FSDPModule) and _is_sharded_again(module)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def shard_again_under_fsdp2(model: nn.Module) -> None:
    """Shards the root's own parameters again: torch's FSDP2 leaves them whole after a forward pass, for a backward
    one."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _is_sharded_again(module: Any) -> bool:
    return any(group._reshard_after_forward for group in module._get_fsdp_state()._fsdp_param_groups)
