"""Bugs that no crash tells of, planted one by one: each is found by the row of `scaleup verify` that is about it, and
none is found where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from scaleup.models.sources import materialize
from tests.cli import differing
from tests.planted import Bug, verified
from tests.small_runs import PPO, SFT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first waits for all

STEP, POLICY, EXPERIENCE = "scaleup.train.step", "scaleup.rl.policy", "scaleup.rl.experience"
CHECKPOINT, TOKENS = "scaleup.train.checkpoint", "scaleup.data.tokenization"

SUPERVISED = differing(
    SFT,
    {
        "name": "supervised",
        "model.path": "begins",
        "data.test": "held.jsonl",
        "parallel.strategy": "ddp",
        "train.warmup_steps": 1,
        "train.lr_scheduler_type": "cosine",
    },
)
"""By a tokenizer that begins each text with a token of its own."""
TIED = differing(SUPERVISED, {"name": "tied", "model.path": "builtin:tiny-qwen2"})
ADAPTED = differing(SUPERVISED, {"name": "adapted", "adapter": {"type": "lora", "r": 4}})
REWARDED = {"placement": "function", "function": "builtin:length"}
POLICIES = differing(PPO, {"name": "policy", "model.path": "builtin:tiny-gpt2", "parallel.strategy": "ddp"}) | {
    "reward": REWARDED
}
"""GPT-2, as rotary positions do not mind where a row begins."""

BUGS: list[tuple[Bug, Mapping[str, Any], str]] = [
    (
        Bug(
            "mean-of-micro-batches",
            STEP,
            "            scaled = loss * scale\n",
            "            scaled = loss / (batch.num_labels or 1.0) / len(batches)\n",
        ),
        SUPERVISED,
        "accumulation",
    ),
    (
        Bug(
            "gradients-not-reduced",
            STEP,
            "runtime.micro_batch(model, last=last)",
            "runtime.micro_batch(model, last=False)",
        ),
        SUPERVISED,
        "processes",
    ),
    (
        Bug(
            "positions-count-padding",
            POLICY,
            "(attention.cumsum(dim=1) - 1).clamp(min=0)",
            "torch.arange(attention.shape[1], device=attention.device).expand(attention.shape)",
        ),
        POLICIES,
        "micro-batch",
    ),
    (
        Bug(
            "random-state-lost",
            CHECKPOINT,
            "            _set_random_state(load_file(_random_file(checkpoint.path, self._runtime.rank)))\n",
            "            pass\n",
        ),
        SUPERVISED,
        "resumed",
    ),
    (
        Bug(
            "optimizer-state-lost",
            CHECKPOINT,
            "        is_direct = self._load_tensors(checkpoint.path)\n",
            "        is_direct = self._load_tensors(checkpoint.path)\n"
            "        base_optimizer(self._optimizer).state.clear()\n",
        ),
        SUPERVISED,
        "resumed",
    ),
    (
        Bug(
            "schedule-one-step-ahead",
            "scaleup.train.optim",
            "    return LambdaLR(optimizer, factor)\n",
            "    return LambdaLR(optimizer, lambda step: factor(step + 1))\n",
        ),
        SUPERVISED,
        "schedule",
    ),
    (
        Bug(
            "order-depends-on-world",
            "scaleup.data.loader",
            "        return self._sources[source].draw(draw)\n",
            "        return self._sources[source].draw(draw + self._split.world)\n",
        ),
        SUPERVISED,
        "processes",
    ),
    (
        Bug(
            "rewards-of-other-ranks",
            EXPERIENCE,
            "        by_source = {name: self.runtime.gather(part) for name, part in scores.items()}\n",
            "        world = self.runtime.world\n"
            "        by_source = {n: self.runtime.gather(p).view(-1, world).T.flatten() for n, p in scores.items()}\n",
        ),
        POLICIES,
        "processes",
    ),
    (
        Bug(
            "two-bos",
            "scaleup.data.text",
            "rows = [each[slice(*self._once(each))] if special else each for each in rows]",
            "rows = [self.first + each if special else each for each in rows]",
        ),
        SUPERVISED,
        "labels",
    ),
    (
        Bug("prompt-learned", TOKENS, "[not self.data.completion_only_loss] * len(prompt)", "[True] * len(prompt)"),
        SUPERVISED,
        "labels",
    ),
    (
        Bug(
            "eos-not-learned",
            TOKENS,
            "np.where(np.asarray(learned[: self.data.max_length]), input_ids, IGNORE)",
            "np.where(np.asarray(learned[: self.data.max_length]) "
            "& (input_ids != self.tokenizer.eos_token_id), input_ids, IGNORE)",
        ),
        SUPERVISED,
        "labels",
    ),
    (
        Bug(
            "head-untied",
            "scaleup.models.saved",
            "    state = revert_weight_conversion(model, state)\n",
            "    state = revert_weight_conversion(model, state)\n"
            "    state['lm_head.weight'] = 1.5 * value_of(model.get_input_embeddings().weight).detach().cpu()\n",
        ),
        TIED,
        "saved",
    ),
    (
        Bug(
            "adapter-scaled-twice",
            "scaleup.compress.export",
            "        merged = adapted.merge_and_unload(safe_merge=True)\n",
            "        for module in adapted.modules():\n"
            "            if isinstance(getattr(module, 'scaling', None), dict):\n"
            "                module.scaling.update({name: 2 * scale for name, scale in module.scaling.items()})\n"
            "        merged = adapted.merge_and_unload(safe_merge=True)\n",
        ),
        ADAPTED,
        "exported",
    ),
    (Bug("dropout-in-the-ratio", POLICY, "        switch_dropout_off(model)\n", ""), POLICIES, "self-checks"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("planted")
    rows = [{"prompt": "ab" * (1 + number % 7), "completion": "c" * (1 + number % 5)} for number in range(20)]
    for name, chosen in (("rows", rows[:16]), ("held", rows[16:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    shutil.copytree(materialize("builtin:tiny-llama", "model.path"), place / "begins")
    tokenizer = AutoTokenizer.from_pretrained(place / "begins")
    first = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{first[0]} $A", special_tokens=[first])
    tokenizer.save_pretrained(place / "begins")
    return place


CONFIGS = (SUPERVISED, TIED, ADAPTED, POLICIES)


def rows_of(config: Mapping[str, Any]) -> list[str]:
    return sorted({row for _, of, row in BUGS if of is config} | {"learns"})


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, Any]:
    """What is found, by bug; and without one, by config."""
    jobs: dict[str, Any] = {bug.name: (bug, config, ("learns", row)) for bug, config, row in BUGS}
    jobs |= {config["name"]: (None, config, rows_of(config)) for config in CONFIGS}
    return verified(jobs, place)


@pytest.mark.parametrize(("bug", "config", "row"), BUGS, ids=[bug.name for bug, _, _ in BUGS])
def test_each_is_found_by_its_row(told: dict[str, Any], bug: Bug, config: Mapping[str, Any], row: str) -> None:
    found = told[bug.name]
    assert found.pop(row)[0] == "violated", found
    assert {name: verdict for name, (verdict, *_) in found.items()} == {"learns": "holds"}


@pytest.mark.parametrize("name", [config["name"] for config in CONFIGS])
def test_none_is_found_where_there_is_none(told: dict[str, Any], name: str) -> None:
    assert {verdict for verdict, *_ in told[name].values()} == {"holds"}, told[name]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_runs_with_other_seeds_are_clean(place: Path) -> None:
    seeded = [
        differing(config, {"name": f"{config['name']}-{seed}", "train.seed": seed})
        for config in CONFIGS
        for seed in range(1, 6)
    ]
    rows = {config["name"]: rows_of(config) for config in CONFIGS}
    jobs: dict[str, Any] = {each["name"]: (None, each, rows[each["name"].rpartition("-")[0]]) for each in seeded}
    found = verified(jobs, place, timeout=1700)
    assert {verdict for of in found.values() for verdict, *_ in of.values()} == {"holds"}, found
    assert len(found) == 20
