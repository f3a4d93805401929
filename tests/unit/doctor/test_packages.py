"""Packages, from metadata as pip writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scaleup.doctor.finding import Finding
from scaleup.doctor.packages import package_findings


def install(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Requires-Python: >=3.11"]
    lines += [f"Provides-Extra: {extra}" for extra in sorted(set(re.findall('extra == "(.*?)"', " ".join(requires))))]
    (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires)]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def found(constraints: Path) -> dict[tuple[str, str], Finding]:
    return {(each.name, each.level): each for each in package_findings("our-app", constraints)}


def test_all_there(site: Path) -> None:
    install(site, "our-app", "1.0", "our-lib>=2", 'our-tool; extra == "dev"')
    install(site, "our-lib", "2.1+cpu", "pydantic>=2")
    (site / "constraints.txt").write_text("# a word\nour-lib==2.1\npydantic-that-is-not-there==1\n")
    rows = found(site / "constraints.txt")
    assert {level for _, level in rows} == {"ok"}
    assert "1 packages" in rows["packages", "ok"].what


def test_missing_too_old_and_not_as_pinned(site: Path) -> None:
    install(site, "our-app", "1.0", "our-lib>=2", "our-gone", "our-user")
    install(site, "our-lib", "1.5")
    install(site, "our-user", "3.0", "our-lib<1.2")
    (site / "constraints.txt").write_text("our-lib==2.1\nour-user==3.0\n")
    rows = found(site / "constraints.txt")
    assert rows["our-gone", "fail"].remedy == "pip install -c constraints.txt our-gone"
    assert "1.5 is installed, and our-user 3.0 needs <1.2" in rows["our-lib", "fail"].what
    assert "our-lib 1.5 (pinned: 2.1)" in rows["packages", "warn"].what
    assert "our-user" not in rows["packages", "warn"].what


OF_EXTRAS = (
    'our-torch; extra == "train"',
    'our-app[train]; extra == "fast"',
    'our-fast; extra == "fast"',
    'our-ninja; extra == "fast"',
    'our-tool; extra == "dev"',
)


def test_without_what_runs(site: Path) -> None:
    install(site, "our-app", "1.0", *OF_EXTRAS)
    rows = found(site / "none.txt")
    assert rows["our-app[train]", "fail"].what == "nothing runs here without our-torch"
    assert rows["our-app[train]", "fail"].remedy == "pip install 'our-app[train]'"
    assert rows["packages", "ok"].what.endswith("without the extras fast")
    assert not [name for name, _ in rows if "dev" in name or "tool" in name]


def test_an_extra_in_part(site: Path) -> None:
    """One that was not asked for is no mistake; one of which a package is gone is."""
    install(site, "our-app", "1.0", *OF_EXTRAS)
    install(site, "our-torch", "2.0")
    assert {level for _, level in found(site / "none.txt")} == {"ok"}
    install(site, "our-fast", "1.0", "our-torch>=3")
    rows = found(site / "none.txt")
    assert rows["our-app[fast]", "warn"].what == "is there in part, without our-ninja"
    assert "2.0 is installed, and our-fast 1.0 needs >=3" in rows["our-torch", "fail"].what


def test_without_a_checkout_nothing_is_pinned(site: Path) -> None:
    install(site, "our-app", "1.0")
    assert ("packages", "warn") not in found(site / "constraints.txt")


def test_a_python_that_is_too_old(site: Path) -> None:
    install(site, "our-app", "1.0")
    file = site / "our_app-1.0.dist-info" / "METADATA"
    file.write_text(file.read_text().replace(">=3.11", ">=9"))
    assert "is not >=9" in found(site / "constraints.txt")["python", "fail"].what


def test_a_package_that_is_only_a_folder(site: Path) -> None:
    assert "is not installed" in found(site / "constraints.txt")["our-app", "fail"].what
