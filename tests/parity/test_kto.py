"""KTO is TRL's, by a whole trajectory of its trainer: each of 12 steps sees all rows, which is where both estimate the
divergence from the same mismatched responses. An encoder-decoder's is that of plain torch."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from scaleup.config.schema import TrainConfig
from scaleup.config.stages.dpo import DPOSettings
from scaleup.data.dataset import TrainingData
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import IGNORE, Encoder, Tokens
from scaleup.data.unpaired import UnpairedEncoder, spliced, unpaired_collator, with_mismatched
from scaleup.records.chats import Chat
from scaleup.records.examples import PromptCompletion, UnpairedPreference
from scaleup.train.dpo import PolicyWithReference
from scaleup.train.fit import Feed
from scaleup.train.kto import KTOTally, kto_objective, with_kl
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.step import evaluate_loss, train_step
from tests.parity.test_dpo import QUIET, WORDS
from tests.unit.data import tiny

STEPS, ROWS = 12, 8
TRAIN = {"learning_rate": 0.1, "lr_scheduler_type": "constant", "max_steps": STEPS, "max_grad_norm": 1.0}
WEIGHTS = {"beta": 0.3, "desirable_weight": 0.7, "undesirable_weight": 1.2}
EXAMPLES = [
    UnpairedPreference(PromptCompletion(f"question {n}:", " " + " ".join(WORDS[n % 3 : 2 + n % 7])), n % 3 != 0)
    for n in range(ROWS)
]


def data_of(name, task="causal_lm", examples=EXAMPLES):
    rows = UnpairedEncoder(Encoder(tiny.tokenizer(name), task, tiny.data_config(max_length=64)))(examples)
    assert None not in rows
    return with_mismatched(TrainingData([MapSource(rows, [0], shuffle=False)], [], len(rows), {}, task), 64)


def our_run(model, folder, split):
    runtime, train, tally = tiny.single_process(folder), TrainConfig(**TRAIN, optimizer="sgd"), KTOTally()
    dpo, data = DPOSettings(loss="kto", **WEIGHTS), data_of("llama")
    policy = PolicyWithReference(model, deepcopy(model))
    collate = unpaired_collator(tiny.collator("llama", model))
    loader = TrainLoader(data.sources, [1.0], collate, Split(*split, runtime.rank, runtime.world), None)
    optimizer = build_optimizer(policy, train)
    schedule = build_schedule(optimizer, train, STEPS)
    wrapped, optimizer = runtime.prepare(policy.train(), optimizer)
    feed, objective, lines = with_kl(runtime, wrapped, Feed(loader, None)), kto_objective(dpo, tally), []
    for step in range(STEPS):
        tally.clear()
        result = train_step(runtime, wrapped, optimizer, feed.loader.batches(step), objective, train.max_grad_norm)
        schedule.step()
        lines.append({"loss": result.loss, "grad_norm": result.grad_norm, **tally.means(runtime)})
    return lines


def trl_run(model, folder):
    rows = [
        {"prompt": each.example.prompt, "completion": each.example.completion, "label": each.is_desirable}
        for each in EXAMPLES
    ]
    settings = KTOConfig(
        output_dir=str(folder),
        **TRAIN,
        **WEIGHTS,
        **QUIET,
        per_device_train_batch_size=ROWS,
    )
    trainer = KTOTrainer(
        model,
        deepcopy(model),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer("llama"),
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def test_trajectory_is_that_of_trl(tmp_path):
    """However our step is cut into micro-batches."""
    model = tiny.model("llama")
    models = [deepcopy(model) for _ in range(3)]
    whole, cut = our_run(models[0], tmp_path / "whole", (ROWS, 1)), our_run(models[1], tmp_path / "cut", (2, ROWS // 2))
    theirs = trl_run(models[2], tmp_path / "trl")
    assert len(whole) == len(cut) == len(theirs) == STEPS
    sides = [f"{kind}/{side}" for kind in ("rewards", "logps") for side in ("chosen", "rejected")]
    for lines in (whole, cut):
        for mine, their in zip(lines, theirs, strict=True):
            for key in ("loss", "grad_norm", "rewards/margins", "kl", *sides):
                assert mine[key] == pytest.approx(float(their[key]), rel=2e-5, abs=2e-5), key
    assert max(line["kl"] for line in theirs) > 1, "the estimate says something"
    their_weights, start = models[2].state_dict(), model.state_dict()
    for mine in models[:2]:
        for key, weight in mine.state_dict().items():
            assert (weight - their_weights[key]).abs().max() <= 1e-5, key
    assert max((weight - start[key]).abs().max() for key, weight in their_weights.items()) > 1e-2


def test_an_encoder_decoder_is_that_of_plain_torch(tmp_path):
    """Also beside a filler, which adds nothing."""
    model, dpo = tiny.model("t5"), DPOSettings(loss="kto", **WEIGHTS)
    reference = deepcopy(model)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    runtime, data, tally = tiny.single_process(tmp_path), data_of("t5", "seq2seq_lm", EXAMPLES[:3]), KTOTally()
    policy = PolicyWithReference(model, reference).eval()
    rows = [data.sources[0].rows[place] for place in range(3)]
    batch = unpaired_collator(tiny.collator("t5", model))([*rows, None])
    assert batch.num_labels == 3
    feed = with_kl(runtime, policy, Feed(None, lambda: [batch]))
    ours = evaluate_loss(runtime, policy, feed.validation(), kto_objective(dpo, tally))

    @torch.no_grad()
    def ratio(row):
        ids, labels = (torch.tensor(part[None].tolist()) for part in (row.input_ids, row.labels))
        both = (of.eval()(input_ids=ids, labels=labels).logits.log_softmax(dim=-1) for of in (model, reference))
        policy, before = (log_p.gather(2, labels[..., None]).sum() for log_p in both)
        return policy - before

    kl = max(sum(ratio(row.mismatched) for row in rows) / 3, torch.zeros(()))
    losses = [
        dpo.desirable_weight * (1 - torch.sigmoid(dpo.beta * (ratio(row.response) - kl)))
        if row.is_desirable
        else dpo.undesirable_weight * (1 - torch.sigmoid(dpo.beta * (kl - ratio(row.response))))
        for row in rows
    ]
    assert ours == pytest.approx(float(sum(losses) / 3), abs=1e-5)
    assert tally.means(runtime)["kl"] == pytest.approx(float(kl), abs=1e-5)


def test_a_mismatched_row_has_its_prompt_and_the_response_of_the_row_before():
    data = data_of("llama")
    rows, tokenizer = data.sources[0].rows, tiny.tokenizer("llama")
    for place in (0, 3):
        row, before = rows[place], rows[place - 1]
        prompt, learned = row.response.input_ids[row.response.labels == IGNORE], before.response.labels
        assert row.mismatched.input_ids.tolist() == [*prompt, *learned[learned != IGNORE]]
        assert row.mismatched.labels[row.mismatched.labels != IGNORE].tolist() == learned[learned != IGNORE].tolist()
    assert tokenizer.decode(rows[1].mismatched.input_ids).startswith("question 1: it was")


def test_a_mismatched_row_is_cut():
    one, other = (Tokens(*(torch.tensor([5, 6, 7]).numpy() for _ in range(2))) for _ in range(2))
    one.labels[:2] = other.labels[:1] = IGNORE
    cut = spliced(one, other, 3, "causal_lm")
    assert cut.input_ids.tolist() == [5, 6, 6]
    assert cut.labels.tolist() == [IGNORE, IGNORE, 6]


def test_a_conversation_is_learned_from_its_completion_alone():
    tokenizer = tiny.tokenizer("llama")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    said = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "good"))
    ]
    made = UnpairedEncoder(Encoder(tokenizer, "causal_lm", tiny.data_config(max_length=256)))
    [row] = made([UnpairedPreference(Chat(said, given=frozenset({1})), True)])
    assert tokenizer.decode(row.response.labels[row.response.labels != IGNORE]) == "good<end>"
