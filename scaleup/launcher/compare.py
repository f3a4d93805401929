"""Finished evaluations go in, or a config that evaluates several models; a comparison of their columns comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.files import folder_problem
from scaleup.errors import ScaleupError
from scaleup.launcher.start import start
from scaleup.plan.derive import evaluation_config
from scaleup.reports.comparison import Comparison, compare_columns
from scaleup.reports.comparison_files import as_json, show_comparison, write_comparison
from scaleup.reports.evaluations import read_columns


@dataclass(frozen=True)
class CompareOptions:
    """Holds what `scaleup compare` shows, and where it writes."""

    by: Sequence[str] = ()
    num_shown: int = 5
    output: Path | None = None
    as_json: bool = False


def compare(targets: Sequence[str], options: CompareOptions, console: Console) -> int:
    """Compare evaluations, and print the tables. The first of the targets may be a config of `stage: evaluate`, the
    others being overrides: it is run first, and the files are written into its folder. Return the exit code.

    Raises ScaleupError for columns that are not comparable, and for a folder that cannot be written."""
    if options.output is not None and (why := folder_problem(options.output)):
        raise ScaleupError.of("--output", f"{options.output} cannot be written: {why}", "name another folder")
    output, notices = options.output, Console(stderr=True) if options.as_json else console
    if Path(targets[0]).is_file():
        code, folder = _evaluate(targets, notices)
        if code:
            return code
        targets, output = [str(folder)], output or folder
    columns, rows = read_columns(targets)
    compared = compare_columns(columns, rows, options.by, num_shown=options.num_shown)
    _show(compared, options.as_json, console)
    if output is not None:
        for file in write_comparison(output, compared):
            notices.print(str(file), highlight=False, markup=False, soft_wrap=True)
    return 0


def _evaluate(targets: Sequence[str], console: Console) -> tuple[int, Path]:
    """Run a config, if it has not been, and return the exit code and the run's folder."""
    file, *overrides = targets
    loaded = evaluation_config(Path(file), overrides)
    config = loaded.config
    code = start(loaded, console, shows=False)
    if config is None:  # which start refuses
        raise ScaleupError(loaded.problems)
    return code, Path(config.runs_dir) / config.name


def _show(compared: Comparison, is_json: bool, console: Console) -> None:
    if is_json:
        print(json.dumps(as_json(compared), indent=2, ensure_ascii=False))
    else:
        show_comparison(console, compared)
