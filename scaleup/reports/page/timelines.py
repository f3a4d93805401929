"""What the groups of a run did when goes in; bars come out, which show who worked and who waited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaleup.artifacts.timeline import Span, read_timelines
from scaleup.reports.html import Html, Limits, section, table, tag
from scaleup.reports.page.charts import NUM_COLORS, legend
from scaleup.reports.rl import IS_WAITING, last_rollouts

WIDTH, HEIGHT = 1000, 20


def timelines(folder: Path, limits: Limits, level: int) -> Html:
    """Returns a bar for each group over the last rollouts, and what each did in the whole run; nothing of a run that
    noted no rollouts."""
    whole = {name: spans for name, spans in read_timelines(folder).items() if spans}
    count, shown = last_rollouts(whole)
    if not count:
        return Html()
    begin = min(span.start for spans in shown.values() for span in spans)
    end = max(span.end for spans in shown.values() for span in spans)
    kinds = dict.fromkeys(span.what for spans in whole.values() for span in spans)
    others = [kind for kind in kinds if kind != IS_WAITING]
    classes = {kind: f"c{number % NUM_COLORS}" for number, kind in enumerate(others)}
    classes |= {IS_WAITING: "waits"} if IS_WAITING in kinds else {}
    rows = [
        tag("div", tag("span", name), _bar(name, spans[-limits.spans :], (begin, end), classes), class_="group")
        for name, spans in shown.items()
    ]
    moments = (0.0, (end - begin) / 2, end - begin)
    scale = tag("div", (tag("span", f"{moment:.3g} s") for moment in moments), class_="scale")
    heading = tag("figcaption", tag("b", f"The last {count} rollouts" if count > 1 else "The last rollout"))
    drawn = tag("figure", heading, legend(classes), rows, scale, class_="timelines")
    return section("Who worked, who waited", drawn, _totals(whole), level=level)


def _bar(name: str, spans: Sequence[Span], ends: tuple[float, float], classes: dict[str, str]) -> Html:
    begin, end = ends
    scale = WIDTH / max(end - begin, 1e-6)
    parts = [
        tag(
            "rect",
            tag("title", f"{span.what}: {span.end - span.start:.3g} s at {span.start - begin:.3g} s"),
            x=f"{(span.start - begin) * scale:.1f}",
            width=f"{max((span.end - span.start) * scale, 0.5):.1f}",
            height=HEIGHT,
            class_=classes[span.what],
        )
        for span in spans
    ]
    told = f"{name}: " + ", ".join(f"{kind} {_seconds(spans, kind):.3g} s" for kind in classes)
    return tag(
        "svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", role="img", aria_label=told
    )  # fmt: skip


def _totals(whole: dict[str, list[Span]]) -> Html:
    """Returns the seconds of each group by what it did, and their share of the time from the first rollout to the
    last."""
    begin = min(span.start for spans in whole.values() for span in spans)
    lasts = max(span.end for spans in whole.values() for span in spans) - begin
    lasts = max(lasts, 1e-6)  # where all is one moment
    rows = []
    for name, spans in whole.items():
        by_kind = {kind: _seconds(spans, kind) for kind in dict.fromkeys(span.what for span in spans)}
        left = max(0.0, lasts - sum(by_kind.values()))
        rows += [[name, kind, f"{seconds:,.1f}", f"{seconds / lasts:.0%}"] for kind, seconds in by_kind.items()]
        rows.append([name, "nothing that is noted", f"{left:,.1f}", f"{left / lasts:.0%}"])
    return table(["group", "did", "seconds", "share"], rows, "In the whole run", "totals")


def _seconds(spans: Sequence[Span], kind: str) -> float:
    return sum(span.end - span.start for span in spans if span.what == kind)
