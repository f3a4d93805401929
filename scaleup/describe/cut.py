"""A model without storage and prune settings go in; the sizes before the cut, and what is left after it, come out."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from scaleup.config.stages.prune import PruneSettings
from scaleup.describe.shell import Shell
from scaleup.models.architecture import architecture_of
from scaleup.models.load import first_line
from scaleup.models.surgery import HeadDims, keep_head_dim, keep_intermediate, keep_kv_groups, keep_layers
from scaleup.plan.facts import Parts


def cut_shell(shell: Shell, settings: PruneSettings, where: str = "model.path") -> Parts:
    """Return the sizes before, and what is left after the cut; which parts go does not matter for that. The shell is
    cut.

    Raises ScaleupError at `where` for an unknown architecture."""
    model = shell.model
    architecture = architecture_of(model, where)
    parts = Parts(
        depths=tuple(len(stack.blocks) for stack in architecture.stacks),
        intermediate_size=architecture.intermediate_size,
        num_key_value_heads=architecture.num_key_value_heads,
        head_dim=architecture.head_dim,
        fixed=architecture.fixed,
    )
    try:
        _cut(model, settings)
    except ValueError:
        return parts  # the plan says what is wrong with the sizes
    try:
        type(model.config).from_dict(model.config.to_dict())
    except Exception as error:  # strict configs have an error class of their own, older ones raise what they like
        return parts.model_copy(update={"refused": " ".join(str(error).split()) or first_line(error)})
    widths = sorted({_width(module) for layer in architecture_of(model).layers for module in layer.module.modules()})
    return parts.model_copy(
        update={"num_parameters": model.num_parameters(), "widths": tuple(width for width in widths if width)}
    )


def _cut(model: Any, settings: PruneSettings) -> None:
    """Keep the first so many of everything. Raises ValueError for impossible sizes."""
    architecture = architecture_of(model)
    if (count := settings.num_key_value_heads) is not None:
        keep_kv_groups(model, [torch.arange(count)] * len(architecture.attentions))
    if settings.head_dim is not None:
        heads = architecture_of(model).num_heads
        dims = torch.arange(settings.head_dim).expand(heads, -1)
        keep_head_dim(model, [HeadDims(dims, dims)] * len(architecture.attentions))
    if settings.intermediate_size is not None:
        keep_intermediate(model, [torch.arange(settings.intermediate_size)] * len(architecture.layers))
    if settings.layers is not None:
        keep_layers(model, range(settings.layers) if isinstance(settings.layers, int) else settings.layers)


def _width(module: Any) -> int:
    if isinstance(module, Conv1D):
        return int(module.nx)
    return int(module.in_features) if isinstance(module, torch.nn.Linear) else 0
