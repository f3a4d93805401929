"""This module holds the config of a run: what every stage has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import Field

from scaleup.config.cluster import ClusterConfig
from scaleup.config.data import DataConfig
from scaleup.config.fields import Name, PathText, Section, absolute
from scaleup.config.generator import GeneratorConfig
from scaleup.config.reward_source import RewardSource, WeightedReward
from scaleup.config.schema import MixedPrecision, ModelConfig, ParallelConfig
from scaleup.errors import without_passwords


class RunConfig(Section):
    """Holds what every stage has. A stage adds its own sections in `scaleup.config.stages`."""

    stand_ins: ClassVar[dict[str, Any]] = {}
    """Holds values of the stage's required keys: enough to look for mistakes elsewhere in a file that leaves them
    out."""

    stage: str
    name: Name
    runs_dir: PathText = "runs"
    model: ModelConfig
    data: DataConfig
    mixed_precision: MixedPrecision = "no"
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    cluster: ClusterConfig | None = Field(
        None, description="What `scaleup render` and `scaleup submit` ask a scheduler for; ignored by `scaleup run`."
    )

    free_on_resume: ClassVar[frozenset[str]] = frozenset()
    """Holds the keys of the stage's own sections that may change when a run goes on."""
    plans_its_batch: ClassVar[bool] = False
    """Tells whether the stage's own keys say how large a step is, however it is split over processes."""

    @property
    def reward_sources(self) -> list[WeightedReward]:
        """Returns where the run's scores come from; a run that is no reinforcement learning has none."""
        return []

    @property
    def reward_groups(self) -> list[WeightedReward]:
        """Returns the sources whose model is in a process group of its own."""
        return [reward for reward in self.reward_sources if reward.source.placement == "group"]

    def with_reward_sources(self, sources: Sequence[RewardSource]) -> Self:
        """Returns the config with other sources in the place of `reward_sources`, as many and in their order."""
        return self

    @property
    def slowest_reward(self) -> WeightedReward | None:
        """Returns the group or service for an answer of which the run may wait longest; None: there is neither. A
        function's call has a limit of its own."""
        asked = (reward for reward in self.reward_sources if reward.source.placement in ("group", "http"))
        return max(asked, key=lambda reward: reward.source.timeout_seconds, default=None)

    @property
    def generator_group(self) -> GeneratorConfig | None:
        """Returns what draws the responses of reinforcement learning in a process group of its own; None: nothing
        does."""
        return None

    @property
    def longest_response(self) -> int:
        """Returns the tokens that a response of reinforcement learning has at most."""
        return 0

    def key(self, name: str) -> str:
        """Returns where the config has `algorithm.KEY` or `rollouts.KEY` of reinforcement learning."""
        return name

    def shown(self, exclude_defaults: bool = False) -> dict[str, Any]:
        """Returns the config's values as others may see them, in trackers and model cards: without the passwords within
        addresses."""
        return _shown(self.model_dump(mode="json", exclude_defaults=exclude_defaults))

    def with_absolute_paths(self) -> Self:
        config = super().with_absolute_paths()
        return config.model_copy(update={"runs_dir": absolute(self.runs_dir)})


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return without_passwords(value) if isinstance(value, str) else value
