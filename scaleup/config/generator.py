"""This module holds what draws a policy's responses: the policy itself, or an engine in a group of its own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from scaleup.config.fields import Count, Int, PathText, Port, Positive, Section, absolute
from scaleup.config.schema import ParallelConfig


class GeneratorConfig(Section):
    """Says what draws responses: the policy itself, by Transformers, or vLLM in a process group of its own, to which
    the weights go after each update. Both draw the same tokens from the same seeds, but for rounding."""

    engine: Literal["transformers", "vllm"] = "transformers"
    placement: Literal["policy", "group"] | None = Field(
        None,
        description="policy: in the policy's own processes, as transformers does; group: in a group of its own, as "
        "vllm does.",
    )
    python: PathText | None = Field(
        None,
        description="For vllm: the Python of an environment with vLLM, which needs another Transformers; `make vllm` "
        "makes one, .venv-vllm/bin/python.",
    )
    parallel: ParallelConfig = Field(
        default_factory=ParallelConfig,
        description="Of the generator's group: device, heartbeat_timeout_seconds, and num_processes, over which vLLM "
        "cuts each matrix (tensor parallelism).",
    )
    staleness: Literal[0, 1] = Field(
        0,
        description="1: the next rollout is drawn while the policy learns from this one, by the weights from before; "
        "importance weights correct for it.",
    )
    max_num_seqs: Count = Field(256, description="Responses that vLLM draws at a time.")
    kv_cache_gib: Count = Field(2, description="Main memory for keys and values, on a CPU.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="Share of a GPU's memory that vLLM takes: weights, keys and values."
    )
    tis_cap: Positive = Field(
        2.0,
        description="Importance weights are bounded by it: a token's probability under the policy over that under the "
        "engine, which rounds otherwise (truncated importance sampling, Yao et al. 2025).",
    )
    tis_mode: Literal["truncate", "mask"] = Field(
        "truncate", description="mask: nothing is learned from tokens with a greater weight."
    )
    timeout_seconds: Positive = Field(120.0, description="An engine without a sign of life for so long counts as lost.")
    reconnect_seconds: Positive = Field(600.0, description="How long the policy waits for an engine that is gone.")
    bridge_port: Port | None = Field(
        None, description="Where the policy listens for the engine; by default a free port at each start."
    )
    max_restarts: Annotated[Int, Field(ge=0)] = Field(
        3, description="How often an engine that died is started again while the policy waits."
    )

    @property
    def is_group(self) -> bool:
        return self.engine == "vllm"

    def with_absolute_paths(self) -> Self:
        section = super().with_absolute_paths()
        return section.model_copy(update={"python": absolute(self.python)}) if self.python else section


GENERATOR = "generator"
"""Is the name of the group, and the section's key."""
FREE_OF_A_GENERATOR = (
    "python",
    "parallel",
    "max_num_seqs",
    "kv_cache_gib",
    "gpu_memory_utilization",
    "timeout_seconds",
    "reconnect_seconds",
    "bridge_port",
    "max_restarts",
)
"""Lists the keys that may change when a run goes on: responses depend on none of them."""
