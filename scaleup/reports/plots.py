"""A figure goes in, a PNG or SVG file comes out: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import aside_of


@contextmanager
def figure(file: Path, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yields a figure and its axes (an array of them where there are several columns), and writes the figure to `file`
    when the block ends. `options` are those of `pyplot.subplots`."""
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(1, columns, dpi=120, **options)
    try:
        yield drawn, axes
        drawn.tight_layout()
        aside = aside_of(file)
        drawn.savefig(aside, format=file.suffix.removeprefix("."))
        aside.replace(file)
    finally:
        pyplot.close(drawn)
