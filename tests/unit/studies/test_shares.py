"""Shares of a machine are equal and apart, and runs side by side keep to theirs."""

from __future__ import annotations

import os

import pytest

from scaleup.plan.machine import Machine
from scaleup.studies.shares import share_of, slots_of

GPUS = Machine(num_cores=16, num_gpus=4, memory=64, gpu_memory=80)


def test_a_share_is_a_machine() -> None:
    assert share_of(GPUS, 2) == Machine(num_cores=8, num_gpus=2, memory=32, gpu_memory=80)
    assert share_of(GPUS, 1) == GPUS


def test_runs_side_by_side_share_no_core_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 4, 5, 7})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5,6")
    first, second = slots_of(Machine(num_cores=5, num_gpus=4), 2)
    assert (first.cores, first.gpus) == ((1, 2), "3,4")
    assert (second.cores, second.gpus) == ((4, 5), "5,6")
    assert [slot.gpus for slot in slots_of(Machine(num_cores=5, num_gpus=0), 2)] == [None, None]
    assert slots_of(Machine(num_cores=5, num_gpus=4), 1)[0].gpus is None
    assert all(slot.cores for slot in slots_of(Machine(num_cores=5, num_gpus=4), 5000)), "more trials than cores"
