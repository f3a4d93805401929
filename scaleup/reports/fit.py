"""What fits, and what would, goes in; lines on a terminal come out, each proposal with the overrides to paste."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from rich.console import Console

from scaleup.plan.fit import Fit
from scaleup.plan.proposals import Proposal
from scaleup.reports.terminal import size_text

TITLES = {
    "same steps": "the same steps",
    "adapter": "another training: LoRA on a quantized base",
    "processes": "more processes, the same steps",
}


def show_fit(console: Console, config: Path, fit: Fit) -> None:
    """Prints whether a config fits, and the proposals by kind; a line of overrides is never broken."""
    console.print(_verdict(fit), soft_wrap=True)
    number = 0
    for kind, proposals in groupby(fit.proposals, key=lambda each: each.kind):
        title = "the devices are used better" if fit.fits else TITLES[kind]
        console.print(f"\n{title} (scaleup run {shlex.quote(str(config))} ...)", style="italic", soft_wrap=True)
        for proposal in proposals:
            number += 1
            console.print(f"{number}. {shlex.join(proposal.overrides)}", style="bold", soft_wrap=True)
            console.print(f"   {', '.join(_costs(proposal, fit))}", soft_wrap=True)
    for note in fit.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _verdict(fit: Fit) -> str:
    room = f"of the {size_text(fit.usable)} that a rank can use of its {size_text(fit.device_memory)}"
    if fit.now is None:
        return f"does not fit: {fit.why}"
    costs = ", ".join(_costs(fit.now, fit))
    return f"{'fits' if fit.fits else 'does not fit'} ({room}): {costs}"


def _costs(proposal: Proposal, fit: Fit) -> Iterator[str]:
    """Yields what a proposal needs, and what it costs where that differs from the config's own."""
    name = "peak" if proposal.is_traced else "holds"
    yield f"{name} {size_text(proposal.needs)} ({proposal.needs / fit.device_memory:.0%})"
    yield f"{proposal.strategy} on {proposal.num_processes}"
    if proposal.micro_batch is not None:
        yield f"micro-batch {proposal.micro_batch} x accumulation {proposal.accumulation}"
    if proposal.recomputed_flops:
        yield f"recomputes a forward pass (+{proposal.recomputed_flops:.0%} FLOPs)"
    if proposal.num_processes > 1:
        yield f"sends {size_text(proposal.communication)} a step"
    if proposal.offload:
        yield f"offloads {size_text(proposal.host)}, {size_text(proposal.offload)} a step to and from main memory"
    if proposal.kind == "adapter":
        yield f"trains {proposal.trainable:.2%} of the parameters"
