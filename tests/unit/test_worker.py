"""What a worker leaves behind of an error that ended it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.worker import NO_MEMORY, _report


@pytest.mark.parametrize(
    ("error", "told", "is_traced"), [(MemoryError(), NO_MEMORY, False), (ValueError("odd"), "odd", True)]
)
def test_no_memory_is_a_sentence_and_a_bug_of_ours_keeps_its_traceback(
    error: Exception, told: str, is_traced: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = RunFolder(tmp_path).attempt(1)
    attempt.errors.mkdir(parents=True)
    try:
        raise error
    except Exception as caught:
        _report(caught, attempt, "policy-rank0")
    recorded = attempt.first_error()
    assert recorded is not None
    assert (recorded["error"], bool(recorded["traceback"])) == (told, is_traced)
    assert "Traceback" in capsys.readouterr().err, "the log has it"
