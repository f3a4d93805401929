"""A config goes in; tiny twins of it are trained, every equality that is due on this machine is measured between them,
and the table and the exit code come out."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scaleup.config.load import Loaded, load_mapping, read_mapping
from scaleup.config.mistakes import suggestion
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.signals import StopSignals
from scaleup.plan.machine import this_machine
from scaleup.plan.resolve import checked_rows, resolve
from scaleup.plan.twins import NUM_ROWS, NUM_STEPS
from scaleup.reports.verification import Finding, Verdict, Verification, show_verification, write_page
from scaleup.studies.verify.equalities import REFERENCE, Equality, NotDue, TwinRun
from scaleup.studies.verify.results import result_equalities
from scaleup.studies.verify.rollouts import rollout_equalities
from scaleup.studies.verify.runs import Interrupted, RunFailed, RunRefused, TwinRuns
from scaleup.studies.verify.trainings import training_equalities
from scaleup.studies.verify.twin import changed, make_models, twin_of, twin_problems


@dataclass(frozen=True)
class VerifyOptions:
    """Holds what the command line says of a verification."""

    overrides: Sequence[str] = ()
    only: Sequence[str] = ()
    """Names the equalities that are measured; none: all."""
    as_json: bool = False
    output: Path | None = None
    """Is the file of the page."""


def run_verify(file: Path, options: VerifyOptions, console: Console) -> int:
    """Measures the equalities of a config, and shows them. Returns the exit code: 0 if all that are due hold, else 1.

    Raises ScaleupError with every mistake before anything starts."""
    began = time.monotonic()
    config = _checked(load_mapping(read_mapping(file), options.overrides), options)
    equalities = [each for each in equalities_of(config) if not options.only or each.name in options.only]
    place = Path(tempfile.mkdtemp(prefix="scaleup-verify-"))
    findings: list[Finding] = []
    try:
        console.print("making the twin's model", soft_wrap=True)
        is_on_cpu = this_machine().num_gpus < 2 or config.parallel.device == "cpu"
        twin = twin_of(config, make_models(config, place), place, is_on_cpu)
        resolve(load_mapping(changed(twin, equalities[0].runs[0].name, {})), check_run_folder=False, peaks=False)
        with StopSignals() as signals:
            runs = TwinRuns(twin, place, signals, lambda line: console.print(line, soft_wrap=True))
            for each in equalities:
                findings.append(found(each, runs))
    except Interrupted:
        console.print("stopped: what was measured so far", soft_wrap=True)
    finally:
        is_kept = any(each.verdict in ("violated", "failed") for each in findings)
        if not is_kept:
            shutil.rmtree(place, ignore_errors=True)
    told = Verification(
        config=str(file),
        stage=config.stage,
        twin=f"twins: {NUM_ROWS} rows a source, {NUM_STEPS} steps, on {'CPU processes' if is_on_cpu else 'GPUs'}",
        findings=findings,
        seconds=time.monotonic() - began,
        is_whole=len(findings) == len(equalities),
        runs=str(place) if is_kept else None,
    )
    if options.as_json:
        print(json.dumps(told.plain(), indent=2))
    else:
        show_verification(console, told)
    if options.output is not None:
        write_page(told, options.output)
    return int(not told.is_well)


def equalities_of(config: TrainingConfig) -> list[Equality]:
    """Returns the equalities between a config's twins, in the order in which they are shown."""
    reference = TwinRun(REFERENCE)
    equalities = [*training_equalities(config, reference), *result_equalities(config, reference)]
    if config.plans_its_batch:
        equalities += rollout_equalities(config, reference)
    return equalities


def found(equality: Equality, runs: TwinRuns) -> Finding:
    """Makes the two runs of an equality, and compares them. Raises Interrupted."""
    rest = (equality.bound, equality.is_least, equality.source)
    if equality.not_due:
        return Finding(equality.name, equality.what, "not due", None, *rest, equality.not_due)
    try:
        one, other = (runs.folder(run) for run in equality.runs)
    except RunRefused as error:
        return Finding(equality.name, equality.what, "not due", None, *rest, str(error))
    except RunFailed as error:
        ends = bool(equality.refused_by) and f"{equality.refused_by}: " in str(error)
        return Finding(equality.name, equality.what, "violated" if ends else "failed", None, *rest, str(error))
    try:
        deviation = equality.measure(one, other)
    except NotDue as error:
        return Finding(equality.name, equality.what, "not due", None, *rest, str(error))
    except ValueError as error:
        return Finding(equality.name, equality.what, "violated", None, *rest, str(error))
    verdict: Verdict = "holds" if equality.holds(deviation) else "violated"
    return Finding(equality.name, equality.what, verdict, deviation, *rest)


def _checked(loaded: Loaded, options: VerifyOptions) -> TrainingConfig:
    """Returns the config. Raises ScaleupError with every mistake that can be seen without the data plane."""
    problems, config = [*loaded.problems, *_output_problems(options.output)], loaded.config
    if config is None:
        raise ScaleupError(problems)
    problems += twin_problems(config)
    if isinstance(config, TrainingConfig):
        problems += [*_option_problems(options, config), *checked_rows(config).problems]
    if problems := list(dict.fromkeys(problems)):
        raise ScaleupError(problems)
    assert isinstance(config, TrainingConfig), "no other stage has twins"
    return config


def _option_problems(options: VerifyOptions, config: TrainingConfig) -> Iterator[Problem]:
    names = [each.name for each in equalities_of(config)]
    for name in options.only:
        if name not in names:
            remedy = suggestion(name, names) or f"there are {', '.join(names)}"
            yield Problem("--only", f"there is no equality {name!r} of this config", remedy)


def _output_problems(output: Path | None) -> Iterator[Problem]:
    if output is not None and output.suffix != ".html":
        yield Problem("--output", f"{output} is no name of a page", "end it in .html")
    elif output is not None and not output.absolute().parent.is_dir():
        yield Problem("--output", f"there is no folder {output.absolute().parent}", "make it first")
