"""A policy that an engine draws for: the same run as one that draws for itself, and an end where the two part."""

import base64
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scaleup.errors import ScaleupError
from scaleup.generator.messages import Answer, Request
from scaleup.generator.serving import Tell
from scaleup.models.rollout import Sampling
from scaleup.rl.generators import VLLMGenerator
from tests.engine_runs import SECRET, Start, trained
from tests.stand_in_engine import StandIn, in_a_thread
from tests.unit.data import tiny


def started(engine: StandIn) -> Start:
    return partial(in_a_thread, engine, secret=SECRET)


@pytest.mark.parametrize(("name", "adapter"), [("tiny-llama", False), ("tiny-qwen2", False), ("tiny-llama", True)])
def test_a_run_by_an_engine_is_the_run_without_one(own_cache: None, tmp_path: Path, name: str, adapter: bool) -> None:
    """Also where the head is the embeddings', and where an adapter alone goes to the engine."""
    engine = StandIn()
    alone, _ = trained(tmp_path / "alone", name, None, adapter)
    drawn, lines = trained(tmp_path / "drawn", name, started(engine), adapter)
    assert max(float((alone[part] - drawn[part]).abs().max()) for part in alone) < 1e-5
    assert engine.versions == [0, 4, 8, 12], "the weights went after each update, and for the last evaluation"
    rollouts = [line for line in lines if "sampling/equal_tokens" in line]
    assert len(rollouts) == 3
    for line in rollouts:
        assert line["sampling/equal_tokens"] == 1
        assert line["sampling/sampling_logp_difference/max"] < 1e-5
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-5)
    assert not (tmp_path / "drawn" / "weights").exists(), "nothing is left in main memory"


def test_a_stale_head_ends_the_run(own_cache: None, tmp_path: Path) -> None:
    """The engine takes new weights but keeps its head, and says nothing: the comparison after the first update does."""
    engine = StandIn(keeps_head=True)
    with pytest.raises(ScaleupError, match=r"generator: draws by other weights than the policy's: log-probabilities"):
        trained(tmp_path / "stale", "tiny-qwen2", started(engine))
    assert engine.versions == [0, 4]


def test_another_sampler_ends_the_run(own_cache: None, tmp_path: Path) -> None:
    """Its log-probabilities are right, its tokens are not those of the seeds."""

    class Others(StandIn):
        def draw(self, request: Any, tell: Any) -> Any:
            object.__setattr__(request, "seeds", request.seeds + 1)
            return super().draw(request, tell)

    with pytest.raises(ScaleupError, match=r"draws other tokens than the policy from the same seeds: 0 of 2"):
        trained(tmp_path / "other", start=started(Others()))


def test_importance_weights_are_cut_or_their_tokens_left_out() -> None:
    log_ratio = torch.tensor([[0.0, 0.5, 1.0]]).double()
    cut = VLLMGenerator(None, None, None, tis_cap=2.0).importance(log_ratio)  # type: ignore[arg-type]
    assert cut[0].tolist() == pytest.approx([1, 1.6487, 2], abs=1e-4)
    left_out = VLLMGenerator(None, None, None, 2.0, "mask").importance(log_ratio)  # type: ignore[arg-type]
    assert left_out[0].tolist() == pytest.approx([1, 1.6487, 0], abs=1e-4)


class Fails(StandIn):
    """Raises when it is asked for its third rollout."""

    def draw(self, request: Request, tell: Tell) -> Answer:
        if len(rollouts_of(self)) == 2 and len(request.prompts) == 8:
            raise RuntimeError("as planned")
        return super().draw(request, tell)


def rollouts_of(engine: StandIn) -> list[int]:
    """The version of the weights of each rollout that it was asked for."""
    return [request.weights.version for request in engine.asked if len(request.prompts) == 8]


def test_a_rollout_that_is_drawn_ahead_is_a_function_of_seed_and_step(own_cache: None, tmp_path: Path) -> None:
    """By the weights from before the last update, which importance weights correct for; also in a run that goes on,
    which has those responses from its checkpoint."""
    straight, first, second = StandIn(), Fails(), StandIn()
    whole, lines = trained(tmp_path / "whole", start=started(straight), ahead=True)
    assert rollouts_of(straight) == [0, 0, 4]
    ratios = [line["sampling/importance_sampling_ratio/max"] for line in lines if "sampling/equal_tokens" in line]
    assert ratios[0] == pytest.approx(1, abs=1e-5) and min(ratios[1:]) > 1.001
    with pytest.raises(ScaleupError, match="as planned"):
        trained(tmp_path / "cut", start=started(first), ahead=True)
    assert rollouts_of(first) == [0, 0]
    gone_on, _ = trained(tmp_path / "cut", start=started(second), ahead=True)
    assert rollouts_of(second) == [4], "what was drawn ahead is not drawn again"
    assert all(bool((whole[name] == gone_on[name]).all()) for name in whole)
    at_once, _ = trained(tmp_path / "at_once")
    assert any(bool((whole[name] != at_once[name]).any()) for name in whole)


def test_what_is_being_learned_from_is_kept_until_the_next_is_asked_for(own_cache: None, tmp_path: Path) -> None:
    """A run that is stopped before could not draw it again: the weights are others by then."""
    rank, client = tiny.single_process(tmp_path), SimpleNamespace(done=0)
    generator = VLLMGenerator(rank, None, client, 2.0, draws_ahead=True)  # type: ignore[arg-type]
    answer = Answer([[5, 6], [7]], [[-1.0, -2.0], [-3.0]])
    head, body = answer.packed()
    seeds = [[0, 0, 1, row] for row in range(2)]
    generator.put_back({"seeds": seeds, "head": head, "body": base64.b64encode(body).decode()})
    assert generator.is_ahead
    sampling = Sampling(4, None, 1.0, (2,), 0)
    (drawn,) = generator.batches([[1], [1]], seeds, sampling)
    assert drawn.responses.lengths.tolist() == [2, 1]
    assert not generator.is_ahead
    kept = generator.kept()
    assert kept is not None and kept["seeds"] == seeds
    other = VLLMGenerator(rank, None, client, 2.0, draws_ahead=True)  # type: ignore[arg-type]
    other.put_back(kept)
    assert other.is_ahead
