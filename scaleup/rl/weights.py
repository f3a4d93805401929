"""A prepared policy goes in; its weights come out as a folder that an engine on the same host loads, in main memory:
parameter by parameter, so that no rank ever holds all of a sharded policy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scaleup.artifacts.files import folder_aside
from scaleup.distributed.deferred import value_of
from scaleup.distributed.runtime import Runtime
from scaleup.generator.messages import Weights
from scaleup.models.adapters import is_adapted
from scaleup.models.saved import own_weights, save_model, write_safetensors
from scaleup.models.soft_prompts import ADAPTER

POLICY = "policy."
"""Is the prefix of the policy's parameters in `Policy`."""
SHARD_SIZE = "5GB"


@dataclass
class WeightsWriter:
    """Writes the weights of a policy, one version after another; of an adapted one the base once, then the adapter
    alone."""

    runtime: Runtime
    model: Any
    """Is a Policy under the run's strategy."""
    base: Callable[[], Any]
    """Loads the model that the policy began as, deferred; rank 0 alone calls it, once."""
    folder: Path
    """Is where on this host the weights lie, in a file system in main memory."""
    _base: Any = field(default=None, init=False)

    def write(self, version: int) -> Weights:
        """Write the weights of the policy after so many updates, and forget those before. Every rank must call it.
        Raises ScaleupError where there is no room."""
        adapted = is_adapted(self._policy)
        base, newest = self.folder / "base", self.folder / f"version-{version}"
        self.runtime.hand_out(self.model, lambda trained: self._write(trained, base, newest))
        return Weights(version, str(base if adapted else newest), str(newest) if adapted else None)

    def forget(self) -> None:
        """Remove all that was written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _policy(self) -> Any:
        return self.runtime.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).policy

    def _write(self, trained: Mapping[str, torch.Tensor], base: Path, newest: Path) -> None:
        policy = {name.removeprefix(POLICY): part for name, part in trained.items() if name.startswith(POLICY)}
        is_first = self._base is None
        if is_first:
            self.forget()
            self.folder.mkdir(mode=0o700, parents=True)  # others on this host have no business with the weights
            self._base = self.base()
        if not is_adapted(self._policy):
            _write_model(self._base, newest, policy)
        else:
            if is_first:
                _write_model(self._base, base, {})
            _write_adapter(self._policy, newest, policy)
        for older in self.folder.glob("version-*"):
            if older != newest:
                shutil.rmtree(older)


def _write_model(base: Any, folder: Path, trained: Mapping[str, torch.Tensor]) -> None:
    """Write the base with what is trained of it, and a head of its own even where it shares the embeddings' weights: an
    engine that packs the head when it loads would keep that of the first weights, and say nothing."""
    weights = {**own_weights(base), **trained}
    head, table = base.get_output_embeddings(), base.get_input_embeddings()
    names = {module: f"{name}.weight" for name, module in base.named_modules()}
    if head is not None and head.weight is table.weight:
        weights[names[head]] = weights[names[table]]
        base.config.tie_word_embeddings = False
    with folder_aside(folder) as aside:
        save_model(base, aside, weights, SHARD_SIZE)


def _write_adapter(model: Any, folder: Path, trained: Mapping[str, torch.Tensor]) -> None:
    """Write a LoRA adapter as PEFT does."""
    from peft import get_peft_model_state_dict

    values = {name: value_of(part) for name, part in trained.items()}
    state = get_peft_model_state_dict(model, state_dict=values, adapter_name=ADAPTER, save_embedding_layers=False)
    with folder_aside(folder) as aside:
        model.peft_config[ADAPTER].save_pretrained(str(aside))
        write_safetensors(aside / "adapter_model.safetensors", state)
