"""Write docs/compatibility.md from the planner's own table, so that the page cannot lag behind.

python scripts/write_compatibility.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from scaleup.config.stages import STAGES
from scaleup.plan.compat import (
    ADAPTERS,
    NOTHING,
    PRECISIONS,
    QUANTIZATIONS,
    REFUSALS,
    STRATEGIES,
    USES,
    Cell,
    use_verdict,
    verdict,
)
from scaleup.plan.stages import planner_named

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"

HEAD = """# What trains together

Written by `scripts/write_compatibility.py` from `scaleup/plan/compat.py`, which the planner refuses by; do not edit.
Of stage `sft`, and after that of the others that train. **ok**: `tests/distributed/test_compatibility.py` trains it on
a CPU: its loss falls, what should change does and nothing else, and in float32 all strategies are one trajectory (of
PPO, `tests/distributed/test_ppo.py`: the same trajectory, and in low precision that the self-checks hold; of DPO,
`test_dpo.py` there: the same trajectory, and in low precision near it; of a distillation, `test_distillation.py`: the
same trajectory and student). **refused**: before a model is loaded, with the number of the reason below. *untested*: it
may run, and the plan says that no test covers it.
"""


def page() -> str:
    parts = [HEAD]
    for stage in (name for name in STAGES if planner_named(name).tested != NOTHING):
        for quantization in QUANTIZATIONS:
            for precision in PRECISIONS:
                parts.append(_section(stage, quantization, precision))
    parts.append(_uses())
    parts.append("\n## Why, and what to do instead\n\n")
    parts += [f"{i}. `{r.where}`: {r.reason}. Instead: {r.remedy}.\n" for i, r in enumerate(REFUSALS, start=1)]
    return "".join(parts)


def _section(stage: str, quantization: str | None, precision: str) -> str:
    lines = [
        "",
        f"## {'' if stage == 'sft' else f'{stage}: '}{quantization or 'not quantized'}, precision {precision}",
        "",
        f"| adapter | {' | '.join(STRATEGIES)} |",
        "|---|" + "---|" * len(STRATEGIES),
    ]
    for adapter in ADAPTERS:
        cells = [_shown(Cell(strategy, quantization, adapter, precision, stage)) for strategy in STRATEGIES]
        lines.append(f"| {adapter} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _uses() -> str:
    lines = ["", "## What other stages take", "", f"| adapter | {' | '.join(USES)} |", "|---|" + "---|" * len(USES)]
    for adapter in ADAPTERS:
        found = [use_verdict(stage, adapter) for stage in USES]
        cells = [f"refused: {use.reason}" if use.status == "refused" else "**ok**" for use in found]
        lines.append(f"| {adapter} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    status = verdict(cell, planner_named(cell.stage).tested).status
    if status == "refused":
        return f"refused {next(i for i, refusal in enumerate(REFUSALS, start=1) if refusal.covers(cell))}"
    return "**ok**" if status == "ok" else "*untested*"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
