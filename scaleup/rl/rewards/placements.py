"""This module holds the placements of a reward: a model in this process, a Python function, a reward group; a service
is in `http.py`. All give the same scores for the same texts."""

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

from scaleup.bridge.client import BridgeClient
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.rl.rewards.interface import Sample, checked_scores

Score = Callable[[Sequence[Sample]], list[float]]


class PlacedRewards(ABC):
    """Serves as the base of all placements: it checks scores, and tells all ranks if one of them has none."""

    where = "reward"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._count = 0

    def submit(self, samples: Sequence[Sample]) -> None:
        """Send samples to be scored; `collect` gets the scores."""
        self._count += len(samples)
        self._submit(samples)

    def collect(self) -> list[float]:
        """Wait for the scores, in order. Raises ScaleupError on all ranks if one has none."""
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
        """Most placements have nothing to close."""
        return

    @abstractmethod
    def _submit(self, samples: Sequence[Sample]) -> None: ...

    @abstractmethod
    def _collect(self) -> Any: ...


class ColocatedRewards(PlacedRewards):
    """Scores in every process of the policy."""

    def __init__(self, runtime: Runtime, score: Score, where: str = "reward.model") -> None:
        super().__init__(runtime)
        self.where = where
        self._score = score
        self._samples: list[Sample] = []

    def _submit(self, samples: Sequence[Sample]) -> None:
        self._samples.extend(samples)

    def _collect(self) -> list[float]:
        samples, self._samples = self._samples, []
        return self._score(samples) if samples else []


class FunctionRewards(ColocatedRewards):
    """Calls a function as TRL's GRPO trainer does: `f(prompts=[...], completions=[...], **columns)` returns one float a
    completion. Columns are the other values of the rows, as lists. Prompts are the texts that the policy reads, of
    conversations too, where TRL gives lists of messages."""

    def __init__(self, runtime: Runtime, function: str, where: str = "reward.function") -> None:
        """Load `function`: FILE.py:NAME or MODULE:NAME, which the config has at the key `where`. Raises ScaleupError if
        it cannot be loaded."""
        self._name = function
        self._function = load_function(function, where)
        super().__init__(runtime, self._call, where)

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
    """Sends samples over the bridge to a reward group. It gets no columns: a reward model reads texts."""

    def __init__(self, runtime: Runtime, client: BridgeClient, where: str = "reward group") -> None:
        super().__init__(runtime)
        self.where = where
        self._client = client

    def _submit(self, samples: Sequence[Sample]) -> None:
        self._client.submit([packed(sample) for sample in samples])

    def _collect(self) -> list[float]:
        return self._client.collect()

    def close(self) -> None:
        self._client.close()


def packed(sample: Sample) -> list[Any]:
    """Return what goes over the bridge of a sample, as JSON can hold it."""
    chat = sample.chat and {"messages": sample.chat.messages, "tools": sample.chat.tools}
    return [sample.prompt, sample.response, sample.finished, chat]


def unpacked(prompt: str, response: str, finished: bool, chat: dict[str, Any] | None) -> Sample:
    """Return the sample that `packed` was given, without its columns."""
    return Sample(prompt, response, finished, chat=Chat(**chat) if chat else None)


def columns_of(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Return lists of B values: `prompts`, `completions`, and each column that any sample has (None for samples without
    it)."""
    names = {name: None for sample in samples for name in sample.columns}
    columns = {name: [sample.columns.get(name) for sample in samples] for name in names}
    texts = {"prompts": [s.prompt for s in samples], "completions": [s.response for s in samples]}
    return columns | texts


def load_function(function: str, where: str) -> Callable[..., Any]:
    """Import FILE.py:NAME or MODULE:NAME. Raises ScaleupError at the key `where`."""
    place, colon, name = function.rpartition(":")
    if not colon or not place or not name:
        raise _unusable(where, f"{function!r} names no function", "write FILE.py:NAME or MODULE:NAME")
    module = _load_module(place, where)
    loaded = getattr(module, name, None)
    if not callable(loaded):
        known = ", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value))) or "none"
        raise _unusable(where, f"{place} has no function {name}", f"its functions: {known}")
    return loaded


def _load_module(place: str, where: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        file = Path(place).expanduser().absolute()
        if not file.is_file():
            raise _unusable(where, f"there is no file {place}", f"it is looked for at {file}")
        spec = importlib.util.spec_from_file_location(f"reward_{file.stem}", file)
        assert spec and spec.loader
        sys.path.append(str(file.parent))  # for what it imports from beside it: last, for it may have a random.py there
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ScaleupError:
        raise
    except Exception as error:  # it is the user's code: anything may come
        traceback.print_exc()
        raise _unusable(
            where, f"{place} cannot be loaded: {type(error).__name__}: {error}", "mend it, or its name"
        ) from error


def _unusable(where: str, what: str, remedy: str) -> ScaleupError:
    return ScaleupError.of(where, what, remedy)
