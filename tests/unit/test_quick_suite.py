"""What `make test` goes through, of all that `make test-all` does: tests say so by the marker `covers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.config.stages import STAGES
from scaleup.plan.compat import STRATEGIES

TESTS = Path(__file__).parent.parent
KINDS = {"distributed", "e2e", "invariants", "parity", "unit"}
REFUSALS_AND_PLANS = {"refusals", "plans"}
LAWS = {"one trajectory", "resume", "parity"}


def test_every_stage_strategy_and_law_is_in_the_quick_suite(request: pytest.FixtureRequest) -> None:
    quick = [item for item in request.session.items if not item.get_closest_marker("slow")]
    if {item.path.relative_to(TESTS).parts[0] for item in quick} < KINDS:
        pytest.skip("these are not all tests")
    covered = {name for item in quick for mark in item.iter_markers("covers") for name in mark.args}
    assert {*STAGES, *STRATEGIES, *LAWS, *REFUSALS_AND_PLANS} - covered == set()
