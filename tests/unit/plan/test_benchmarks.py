"""The names of the installed lm-evaluation-harness are told without importing it."""

from __future__ import annotations

import pytest

from scaleup.plan.benchmarks import harness_names


def test_names_of_tasks_groups_and_tags() -> None:
    assert {"mmlu", "glue", "super-glue-lm-eval-v1", "hellaswag", "bigbench_generate_until"} <= harness_names()
    assert "hellaswagg" not in harness_names()


@pytest.mark.slow
def test_every_name_is_known() -> None:
    from lm_eval.tasks import TaskManager

    assert set(TaskManager().all_tasks) <= harness_names()
