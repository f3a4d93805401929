"""The places that scores come from: this process's own reward model, a Python function, a reward group. One more, a
service, is in `http_rewards`. All give the same scores for the same texts."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from scaleup.distributed.bridge import BridgeClient
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.rl.rewards import Sample, checked_scores

Score = Callable[[Sequence[Sample]], list[float]]


class PlacedRewards(ABC):
    """What all placements share: the one place where scores are checked, and all ranks learn that one has none."""

    where = "reward"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._count = 0

    def submit(self, samples: Sequence[Sample]) -> None:
        self._count += len(samples)
        self._submit(samples)

    def collect(self) -> list[float]:
        """Raises ScaleupError on all ranks when one has no scores."""
        count, self._count = self._count, 0
        scores: list[float] = []
        problem = None
        try:
            scores = checked_scores(self._collect(), count, self.where)
        except ScaleupError as error:
            problem = error
        if self._runtime.any(problem is not None):
            raise problem or ScaleupError.of(self.where, "another process of the policy got no scores", "see its log")
        return scores

    def close(self) -> None:
        """Most have nothing to end."""
        return

    @abstractmethod
    def _submit(self, samples: Sequence[Sample]) -> None: ...

    @abstractmethod
    def _collect(self) -> Any: ...


class ColocatedRewards(PlacedRewards):
    """A reward model in every process of the policy."""

    where = "reward.model"

    def __init__(self, runtime: Runtime, score: Score) -> None:
        super().__init__(runtime)
        self._score = score
        self._samples: list[Sample] = []

    def _submit(self, samples: Sequence[Sample]) -> None:
        self._samples.extend(samples)

    def _collect(self) -> list[float]:
        samples, self._samples = self._samples, []
        return self._score(samples) if samples else []


class FunctionRewards(ColocatedRewards):
    """A function as TRL's GRPO trainer calls them: `f(prompts=[...], completions=[...], **columns)` gives one float a
    completion. Columns are what the rows hold besides, as lists."""

    where = "reward.function"

    def __init__(self, runtime: Runtime, function: str) -> None:
        """`function`: FILE.py:NAME or MODULE:NAME. Raises ScaleupError when it cannot be loaded."""
        self._name = function
        self._function = load_function(function)
        super().__init__(runtime, self._call)

    def _call(self, samples: Sequence[Sample]) -> Any:
        arguments = columns_of(samples)
        parameters = inspect.signature(self._function).parameters.values()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            names = {parameter.name for parameter in parameters}
            arguments = {name: values for name, values in arguments.items() if name in names}
        try:
            return self._function(**arguments)
        except Exception as error:
            traceback.print_exc()
            what = f"{self._name} raised {type(error).__name__}: {error}"
            raise ScaleupError.of(self.where, what, "the log has its traceback") from error


class GroupRewards(PlacedRewards):
    """The reward group at the other end of the bridge. It gets no columns: a reward model reads texts."""

    where = "reward group"

    def __init__(self, runtime: Runtime, client: BridgeClient) -> None:
        super().__init__(runtime)
        self._client = client

    def _submit(self, samples: Sequence[Sample]) -> None:
        self._client.submit([[sample.prompt, sample.response, sample.finished] for sample in samples])

    def _collect(self) -> list[float]:
        return self._client.collect()

    def close(self) -> None:
        self._client.close()


def columns_of(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """`prompts`, `completions`, and each column that any of the rows holds (None for rows without it)."""
    names = {name: None for sample in samples for name in sample.columns}
    columns = {name: [sample.columns.get(name) for sample in samples] for name in names}
    texts = {"prompts": [s.prompt for s in samples], "completions": [s.response for s in samples]}
    return columns | texts


def load_function(function: str) -> Callable[..., Any]:
    """What FILE.py:NAME or MODULE:NAME names. Raises ScaleupError at `reward.function`."""
    place, colon, name = function.rpartition(":")
    if not colon or not place or not name:
        raise _unusable(f"{function!r} names no function", "write FILE.py:NAME or MODULE:NAME")
    module = _load_module(place)
    found = getattr(module, name, None)
    if not callable(found):
        known = ", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value))) or "none"
        raise _unusable(f"{place} has no function {name}", f"its functions: {known}")
    return found


def _load_module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        file = Path(place).expanduser().absolute()
        if not file.is_file():
            raise _unusable(f"there is no file {place}", f"it is looked for at {file}")
        spec = importlib.util.spec_from_file_location(f"reward_{file.stem}", file)
        assert spec and spec.loader
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ScaleupError:
        raise
    except Exception as error:  # it is the user's code: anything may come
        traceback.print_exc()
        raise _unusable(f"{place} cannot be loaded: {type(error).__name__}: {error}", "mend it, or its name") from error


def _unusable(what: str, remedy: str) -> ScaleupError:
    return ScaleupError.of(FunctionRewards.where, what, remedy)
