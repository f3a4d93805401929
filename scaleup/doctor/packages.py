"""This module examines whether the packages are there that scaleup and its extras declare, in the versions that they
require of one another and that were pinned."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import scaleup
from scaleup.doctor.finding import Finding, fail, ok, warn

SHOWN = ("torch", "accelerate", "deepspeed", "transformers", "peft", "bitsandbytes", "trl")
RUNS, TOOLS = "train", "dev"
"""Name the extra without which nothing runs, and the one of developers, which no run needs."""
CONSTRAINTS = Path(scaleup.__file__).parent.parent / "constraints.txt"
PIP = "pip install -c constraints.txt" if CONSTRAINTS.is_file() else "pip install"
"""Is how packages are installed: with the versions that were tested, where a checkout has them."""
"""Lies beside the package in a checkout; a wheel has none."""
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==(\S+)$", re.M)


def package_findings(distribution: str = "scaleup", constraints: Path = CONSTRAINTS) -> Iterator[Finding]:
    """Check what an installed distribution declares, and what that declares in turn."""
    try:
        package = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        what = "is not installed here, so its requirements are unknown"
        yield fail(distribution, what, "pip install -c constraints.txt -e .")
        return
    yield _python(package)
    needed = requirements(package)
    for each in needed:
        if version_of(each.name) is None:
            yield fail(each.name, "is not installed", f"{PIP} {each.name}")
    left_out = []
    for extra in extras(package):
        own = [each for each in requirements(package, extra) if each.name != package.name]
        missing = [each.name for each in own if version_of(each.name) is None]
        remedy = f"pip install '{distribution}[{extra}]'"
        if extra == RUNS and missing:
            yield fail(f"{distribution}[{extra}]", f"nothing runs here without {', '.join(missing)}", remedy)
        elif len(missing) == len(own):
            left_out.append(extra)
        elif missing:
            what = f"is there in part, without {', '.join(missing)}"
            yield warn(f"{distribution}[{extra}]", what, f"{remedy}, if a run uses it")
        needed += own
    installed = {each.name: version for each in needed if (version := version_of(each.name))}
    yield from _conflicts([package, *(metadata.distribution(name) for name in installed)])
    yield from _differing(constraints)
    shown = [f"{name} {installed[name]}" for name in SHOWN if name in installed]
    without = f"; without the extras {', '.join(left_out)}" if left_out else ""
    what = f"scaleup {scaleup.__version__}; {len(installed)} packages, among them {', '.join(shown)}{without}"
    yield ok("packages", what)


def extras(package: metadata.Distribution) -> list[str]:
    """Returns the names of a distribution's extras, but for those of developers."""
    return [extra for extra in package.metadata.get_all("Provides-Extra") or [] if extra != TOOLS]


def requirements(package: metadata.Distribution, extra: str = "") -> list[Requirement]:
    """Returns what a distribution, or one extra of it alone, needs on this machine."""
    needs = []
    for line in package.requires or []:
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue  # an old package's own way of writing: pip let it in
        marker = needed.marker
        is_base = marker is None or marker.evaluate({"extra": ""})
        is_of_extra = marker is not None and marker.evaluate({"extra": extra})
        if is_of_extra and not is_base if extra else is_base:
            needs.append(needed)
    return needs


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python(package: metadata.Distribution) -> Finding:
    version, required = platform.python_version(), package.metadata["Requires-Python"] or ">=3.11"
    if SpecifierSet(required).contains(version, prereleases=True):
        return ok("python", f"{platform.python_implementation()} {version}")
    return fail("python", f"{version} is not {required}", "make the virtual environment with another Python")


def _conflicts(packages: list[metadata.Distribution]) -> Iterator[Finding]:
    for package in packages:
        for needed in requirements(package):
            version = version_of(needed.name)
            if version and not needed.specifier.contains(Version(version), prereleases=True):
                what = f"{version} is installed, and {package.name} {package.version} needs {needed.specifier}"
                yield fail(needed.name, what, f"{PIP} {needed.name}")


def _differing(constraints: Path) -> Iterator[Finding]:
    """Yield packages of other versions than the pinned ones. A build's local part (`+cpu`) is no difference."""
    if not constraints.is_file():
        return
    different = []
    for name, pinned in PIN.findall(constraints.read_text(encoding="utf-8")):
        version = version_of(name)
        if version and Version(version).public != Version(pinned).public:
            different.append(f"{name} {version} (pinned: {pinned})")
    if different:
        shown = ", ".join(different[:6]) + (f" and {len(different) - 6} more" if len(different) > 6 else "")
        yield warn("packages", f"not the versions that were tested: {shown}", "pip install -c constraints.txt -e .")
