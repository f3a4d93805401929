"""A check that breaks is a finding, and so is what a user must mend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scaleup.doctor.finding import Finding, findings_of, ok, size_text
from scaleup.errors import Problem, ScaleupError


def test_what_was_found_before_a_check_broke_is_kept() -> None:
    def breaks() -> Iterator[Finding]:
        yield ok("first", "fine")
        raise OSError(5, "Input/output error")

    first, second = findings_of("disk", breaks)
    assert first.level == "ok"
    assert (second.name, second.level) == ("disk", "fail") and "OSError: [Errno 5] Input/output error" in second.what


def test_problems_are_rows_of_their_own() -> None:
    def refuses() -> Iterator[Finding]:
        raise ScaleupError([Problem("a.b", "is wrong", "mend it"), Problem("c", "too")])

    assert findings_of("plan", refuses) == [Finding("a.b", "fail", "is wrong", "mend it"), Finding("c", "fail", "too")]


@pytest.mark.parametrize(("size", "text"), [(100, "0.1 KiB"), (3 * 2**29, "1.5 GiB"), (2**20, "1.0 MiB")])
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text
