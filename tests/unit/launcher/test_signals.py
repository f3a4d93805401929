"""What the agent makes of signals: one asks, only a second Ctrl-C here ends all at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from scaleup.launcher.signals import StopSignals


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    with StopSignals() as installed:
        yield installed


def told(signals: StopSignals, *numbers: signal.Signals) -> tuple[int, bool]:
    for number in numbers:
        os.kill(os.getpid(), number)
    return signals.count, signals.at_once


def test_a_second_interrupt_is_at_once(signals: StopSignals) -> None:
    assert told(signals, signal.SIGINT) == (1, False)
    assert told(signals, signal.SIGINT) == (2, True)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_schedulers_signals_never_are(signals: StopSignals, number: signal.Signals, times: int) -> None:
    assert told(signals, *[number] * times) == (times, False)
    assert told(signals, signal.SIGINT) == (times + 1, False)


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            assert told(signals, signal.SIGHUP) == (0, False)
            assert told(signals, signal.SIGTERM) == (1, False)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_first_interrupt_after_another_nodes_stop_is_not(signals: StopSignals) -> None:
    """Ctrl-C in two terminals, or srun's to all its tasks: both save."""
    signals.request()
    assert told(signals, signal.SIGINT) == (2, False)
    assert told(signals, signal.SIGINT) == (3, True)


def test_whoever_can_act_is_told_of_each(signals: StopSignals) -> None:
    acted: list[int] = []
    with signals.passed_to(lambda: acted.append(signals.count)):
        told(signals, signal.SIGTERM)
        signals.request()
    told(signals, signal.SIGTERM)
    assert acted == [1, 2]


def test_whoever_is_around_counts_them_too(signals: StopSignals) -> None:
    """A run ends with its own code, and the pipeline that it is of begins no other."""
    acted: list[int] = []
    with signals.passed_to(lambda: acted.append(1)), StopSignals() as inner:
        assert told(inner, signal.SIGTERM) == (1, False)
    assert (signals.count, signals.at_once, acted) == (1, False, [])
