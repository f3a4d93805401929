"""The fused head and distillation loss against others: time and peak memory of forward and backward.

    python benchmarks/distill.py [--tokens 1024] [--vocabulary 49152] [--width 576] [--repeats 3] [--json OUT]

Student and teacher are heads of one shape, the loss is a divergence over the vocabulary without labels, which is all
that TRL has. All must agree. Each variant runs in a process of its own, on one thread; time is the best of the repeats,
of the process (CPU seconds), memory is the most that was resident beyond what it was before the first of them, with
the inputs made."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VARIANTS = ("naive", "fused", "trl", "trl-tuned", "liger")
TITLES = {
    "naive": "logits of all positions, autograd",
    "fused": "scaleup: gradient in the forward, 256 positions at a time",
    "trl": "TRL's chunked divergence as shipped (tiles of 4096 x 32768)",
    "trl-tuned": "the same, tiles of 128 positions",
    "liger": "Liger's fused linear JSD, 128 positions at a time, not compiled",
}
DIVERGENCES = {"forward_kl": 0.0, "jsd": 0.5}


def inputs(tokens: int, vocabulary: int, width: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {
        "hidden": torch.randn(tokens, width),
        "weight": torch.randn(vocabulary, width) / width**0.5,
        "taught": torch.randn(tokens, width),
        "teacher": torch.randn(vocabulary, width) / width**0.5,
        "labels": torch.randint(vocabulary, (tokens,)),
    }
    made["hidden"].requires_grad_()
    made["weight"].requires_grad_()
    return made


def naive(given: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    q = F.log_softmax(given["hidden"] @ given["weight"].T, dim=-1)
    with torch.no_grad():
        p = F.log_softmax(given["taught"] @ given["teacher"].T, dim=-1)
    if beta == 0:
        return F.kl_div(q, p, reduction="sum", log_target=True)
    m = torch.logaddexp(p + torch.tensor(beta).log(), q + torch.tensor(1 - beta).log())
    parts = [F.kl_div(m, part, reduction="sum", log_target=True) for part in (p, q)]
    return beta * parts[0] + (1 - beta) * parts[1]


def fused(given: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    from scaleup.data.collate import Places
    from scaleup.distill.divergence import SoftAndHard
    from scaleup.distill.heads import DistillTargets, StudentHead
    from scaleup.models.heads import HiddenHead, told

    heads = []
    for kind, weight in ((StudentHead, given["weight"]), (HiddenHead, given["teacher"])):
        head = kind(1, 1, bias=False)
        head.weight = (
            weight if isinstance(weight, torch.nn.Parameter) else torch.nn.Parameter(weight, weight.requires_grad)
        )
        heads.append(head)
    given["parameter"] = heads[0].weight
    labels = given["labels"]
    targets = DistillTargets(Places.of(labels), labels, SoftAndHard(beta, 1.0, 1.0), heads[1], given["taught"])
    with told(targets, heads[0]):
        return heads[0](given["hidden"])


def trl(given: dict[str, torch.Tensor], beta: float, tile: int | None = None) -> torch.Tensor:
    from trl.kernels import chunked_divergence

    if tile is not None:
        chunked_divergence.TOKEN_CHUNK_SIZE = tile
    each, _ = chunked_divergence.ChunkedDivergenceFunction.apply(
        given["hidden"], given["weight"], None, given["taught"], given["teacher"], None, beta
    )
    return each.sum()


def liger(given: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

    found = LigerFusedLinearJSDFunction.apply(
        given["hidden"], given["weight"], given["taught"], given["teacher"], given["labels"], None, None,
        0.0, 1.0, beta, -100, 1.0, False, 128,
    )  # fmt: skip
    return found * len(given["labels"])  # which it divides by


def loss_of(variant: str, given: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    if variant == "trl-tuned":
        return trl(given, beta, tile=128)
    return {"naive": naive, "fused": fused, "trl": trl, "liger": liger}[variant](given, beta)


def measure(variant: str, beta: float, repeats: int, sizes: tuple[int, int, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    try:
        small = inputs(8, 50, 6)
        loss_of(variant, small, beta).backward()  # imports, and whatever a first call does
    except ModuleNotFoundError as error:
        return {"skipped": f"{error.name} is not installed"}
    given = inputs(*sizes)
    before, seconds, total = _peak(), [], torch.zeros(())
    for _ in range(repeats):
        given["hidden"].grad = given["weight"].grad = None
        if "parameter" in given:
            given["parameter"].grad = None
        start = time.process_time()
        total = loss_of(variant, given, beta)
        total.backward()
        seconds.append(time.process_time() - start)
    by_weight = given.get("parameter", given["weight"]).grad
    by_hidden = given["hidden"].grad
    assert by_weight is not None and by_hidden is not None
    marks = [float(part) for part in (*by_hidden[::97, ::53].flatten(), *by_weight[::4999, ::53].flatten())]
    return {"seconds": min(seconds), "mib": (_peak() - before) / 2**10, "loss": total.item(), "gradients": marks}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--divergences", nargs="+", choices=list(DIVERGENCES), default=list(DIVERGENCES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="one variant and its beta, e.g. fused:0.5; prints JSON")
    given = parser.parse_args()
    sizes = given.tokens, given.vocabulary, given.width
    if given.only:
        variant, beta = given.only.split(":")
        print(json.dumps(measure(variant, float(beta), given.repeats, sizes)))
        return
    rows = []
    for name in given.divergences:
        beta = DIVERGENCES[name]
        print(f"\n{name}, {sizes[0]:,} tokens x {sizes[1]:,} x {sizes[2]}\n")
        print("| variant | CPU s | peak MiB | loss off by | gradient off by |\n|---|---|---|---|---|")
        known: dict[str, Any] = {}
        for variant in VARIANTS:
            asked = [sys.executable, __file__, "--only", f"{variant}:{beta}", "--repeats", str(given.repeats)]
            asked += ["--tokens", str(sizes[0]), "--vocabulary", str(sizes[1]), "--width", str(sizes[2])]
            answer = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(answer.splitlines()[-1])
            rows.append({"case": f"{name}, {TITLES[variant]}", "variant": variant, "divergence": name, **found})
            if "skipped" in found:
                print(f"| {TITLES[variant]} | skipped: {found['skipped']} | | | |")
                continue
            known = known or found
            off = abs(found["loss"] / known["loss"] - 1)
            largest = max(map(abs, known["gradients"]))
            gap = max(abs(a - b) for a, b in zip(found["gradients"], known["gradients"], strict=True)) / largest
            print(
                f"| {TITLES[variant]} | {found['seconds']:.2f} | {found['mib']:,.0f} | {off:.0e} | {gap:.0e} |",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(beside_ours(rows)), encoding="utf-8")


def beside_ours(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what --json writes: each other variant with ours of the same divergence."""
    ours = {
        row["divergence"]: {key: row[key] for key in ("seconds", "mib")} for row in rows if row["variant"] == "fused"
    }
    return [
        {"case": row["case"], "skipped": row["skipped"]}
        if "skipped" in row
        else {
            "case": row["case"],
            "theirs": {key: row[key] for key in ("seconds", "mib")},
            "ours": ours[row["divergence"]],
        }
        for row in rows
        if row["variant"] != "fused"
    ]


if __name__ == "__main__":
    main()
