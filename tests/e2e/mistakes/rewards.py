"""Mistakes about reward models."""

from __future__ import annotations

from tests.e2e.mistakes.case import bad, rows

REWARD = {
    "stage": "reward",
    "model.path": "builtin:tiny-bert",
    "data.validation": None,
    "data.prompt": None,
    "data.completion": None,
    "data.chosen": "{good}",
    "data.rejected": "{bad}",
}
PAIR = '{"good": "a", "bad": "b"}'
RANKING = {**REWARD, "data.chosen": None, "data.rejected": None, "data.completions": "answers", "data.ranks": "places"}

REWARDS = [
    bad(
        "pairs that are none, an empty response and a margin without a number",
        "rows.jsonl:1: 'rejected' is empty",
        "rows.jsonl:2: 'by' holds a str, not a number",
        changes={**REWARD, "data.margin": "by"},
        prepare=rows('{"good": "a", "bad": " ", "by": 1}', '{"good": "a", "bad": "b", "by": "much"}'),
    ),
    bad(
        "conversations that do not begin alike, and text beside messages",
        "rows.jsonl:1: 'rejected[0]' has another prompt than chosen",
        "rows.jsonl:2: 'chosen, rejected' holds text beside messages",
        "rows.jsonl:3: 'rejected' goes on with a message of role user",
        changes={**REWARD, "data.prompt": "{prompt}"},
        prepare=rows(
            '{"prompt": [], "good": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}], '
            '"bad": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "d"}]}',
            '{"prompt": "a", "good": [{"role": "assistant", "content": "c"}], "bad": "d"}',
            '{"prompt": "a", "good": [{"role": "assistant", "content": "c"}], '
            '"bad": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "d"}]}',
        ),
    ),
    bad(
        "equal responses only",
        "holds no pair in which one response is preferred (2 equal) -> name a file with preferences",
        changes=REWARD,
        prepare=rows('{"good": "a", "bad": "a"}', '{"good": "b", "bad": "b"}'),
    ),
    bad(
        "rankings of unequal lengths, streamed",
        "error: data.streaming: does not go with rankings",
        "rows.jsonl:1: 'places' holds 1 numbers for 2 completions",
        changes={**RANKING, "data.streaming": True},
        prepare=rows('{"answers": ["a", "b"], "places": [1]}'),
    ),
    bad(
        "a format without the other half, packing and a template that forgets the response",
        "error: data.chosen: is set without rejected -> set data.rejected beside it",
        "error: data.packing: not supported for reward models -> remove it",
        "error: reward.template: does not hold {response}: all responses would score the same",
        changes={**REWARD, "data.rejected": None, "data.packing": True, "reward.template": "{prompt}"},
        prepare=rows(PAIR),
    ),
    bad(
        "a soft prompt",
        "error: adapter.type: a reward model's new head is trained with the adapter",
        changes={**REWARD, "adapter": {"type": "prompt_tuning", "num_virtual_tokens": 4}},
        prepare=rows(PAIR),
    ),
    bad(
        "a classifier of two labels",
        "error: model.path: is a classifier of 2 labels (negative, positive), a reward model has one",
        changes={**REWARD, "model.path": "builtin:tiny-bert-classifier"},
        prepare=rows(PAIR),
        asks=True,
    ),
    bad(
        "preferences for sft",
        "error: data.chosen: is of preferences, which stage sft does not learn from -> use stage: dpo,",
        changes={**REWARD, "stage": "sft", "model.path": "builtin:tiny-llama"},
        prepare=rows(PAIR),
    ),
]

CASES = {"reward": REWARDS}
