"""What a deployment card says of a measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaleup.reports.deployment import markdown, pareto, plot, verdict

MACHINE = {"machine": "a machine", "date": "today"}


def measured(
    size: int = 1000,
    peak: float = 100.0,
    prefill: float = 10.0,
    decode: float = 20.0,
    zeros: float = 0.0,
    ratio: float = 1.0,
    compiled: dict[str, Any] | None = None,
) -> dict[str, Any]:
    latency = {"latency_p50_ms": 1000 / decode, "latency_p95_ms": 1100 / decode}
    found: dict[str, Any] = {
        "num_parameters": 250,
        "num_non_embedding_parameters": 200,
        "bytes": size,
        "bits_per_parameter": 8 * size / 250,
        "zeros": zeros,
        "peak_memory_mib": peak,
        "eager": {
            "prefill_ms": prefill,
            "prefill_tokens_per_second": 1e5 / prefill,
            "decode_tokens_per_second": decode,
            **latency,
        },
        "quality": {
            "rows": 5,
            "tokens": 50,
            "perplexity": 30 * ratio,
            "perplexity_interval": [29 * ratio, 31 * ratio],
            "perplexity_ratio": ratio,
            "perplexity_ratio_interval": [ratio - 0.01, ratio + 0.01],
            "divergence": 0.1,
            "agreement": 0.9,
        },
        "task": {},
    }
    return found | ({"compiled": compiled} if compiled else {})


def test_a_smaller_and_faster_one() -> None:
    said = verdict(measured(size=740, decode=28.0, ratio=1.2), measured())
    assert said == {"gain": True, "words": "bytes x 0.74, decode x 1.40; perplexity x 1.20 (1.19 to 1.21)"}


def test_a_smaller_and_slower_one() -> None:
    said = verdict(measured(size=460, decode=9.0), measured())
    assert said["gain"]
    assert said["words"] == "bytes x 0.46; but decode x 0.45; these rows show no difference in perplexity"


def test_zeros_are_no_gain() -> None:
    said = verdict(measured(zeros=0.5, decode=20.4, ratio=2.0), measured())
    assert not said["gain"]
    assert "50% of the weights are zero, and are stored and multiplied like any other number" in said["words"]
    assert verdict(measured(decode=10.0), measured())["words"].startswith("none; decode x 0.50")


def test_compiled_inference_counts() -> None:
    """Nothing is called slow before its compiled inference was looked at, nor fast beside a slow eager one."""
    compiled = {"prefill_ms": 5.0, "decode_tokens_per_second": 40.0}
    assert verdict(measured(size=460, decode=9.0, compiled=compiled), measured())["words"].startswith(
        "bytes x 0.46, prefill x 2.00, decode x 2.00; these"
    )
    assert "decode" not in verdict(measured(compiled=compiled), measured(compiled=compiled))["words"]
    failed = measured(compiled={"error": "no compiler"})
    assert verdict(failed, measured())["words"].startswith("none")


def test_a_classifier_has_nothing_to_decode() -> None:
    classifier, faster = measured(), measured(prefill=5.0)
    for each in (classifier, faster):
        each["eager"] = {key: value for key, value in each["eager"].items() if key.startswith("prefill")}
    assert verdict(faster, classifier)["words"].startswith("prefill x 2.00")
    assert pareto({"a": classifier, "b": faster}) == ["b"]


def test_what_nothing_beats() -> None:
    models = {"model": measured(), "small": measured(size=500, ratio=1.1), "worse": measured(ratio=1.1)}
    assert pareto(models) == ["model", "small"]


def test_the_card_and_its_plot(tmp_path: Path) -> None:
    models = {"model": measured(), "small": measured(size=500, compiled={"error": "no compiler"})}
    models["small"]["verdict"] = verdict(models["small"], models["model"])
    text = markdown(models, "model", "rows.jsonl", MACHINE)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert len({row.count(" | ") for row in rows}) == 1, "every row has every column"
    assert "yes: bytes x 0.50" in rows[3]
    assert "20.0 / failed" in rows[3]
    assert "- machine: a machine" in text
    plot(models, tmp_path / "card.png")
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")
