"""Every preference loss is TRL's, by a whole trajectory of its trainer's or by its own function; an encoder-decoder's
is that of plain torch."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

from scaleup.config.schema import TrainConfig
from scaleup.config.stages.dpo import DPOSettings
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.preferences import PreferenceEncoder, preference_collator
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import IGNORE, Encoder
from scaleup.records.chats import Chat
from scaleup.records.preferences import Preference
from scaleup.train.dpo import Pairs, PolicyWithReference, dpo_objective, pair_losses
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.step import train_step
from scaleup.train.tally import Tally
from tests.unit.data import tiny

STEPS, MICRO = 12, 2
TRAIN = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": STEPS, "max_grad_norm": 1.0}
WORDS = ["it", "was", "a", "joy", "to", "see", "all", "of", "them", "there,", "and", "nobody", "minded", "the", "rain"]
PAIRS = [
    Preference(f"question {n}:", " " + " ".join(WORDS[: 1 + n % 7]), " " + " ".join(WORDS[-1 - n % 5 :]))
    for n in range(STEPS * MICRO * 2)
]
QUIET = {
    "optim": "sgd",
    "max_length": 64,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Has a trainer of TRL's step as plainly as ours, and leave nothing."""
LOSSES = {
    "dpo": {"loss_type": ["sigmoid"]},
    "ipo": {"loss_type": ["ipo"]},
    "hinge": {"loss_type": ["hinge"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.2},
    "sppo": {"loss_type": ["sppo_hard"]},
    "dpo and sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.7, 0.3]},
}
OURS = {
    "robust": {"loss": "robust", "label_smoothing": 0.2},
    "dpo and sft": {"loss": ["dpo", "sft"], "loss_weights": [0.7, 0.3]},
}


def encoder(name, task="causal_lm", **data):
    return PreferenceEncoder(Encoder(tiny.tokenizer(name), task, tiny.data_config(max_length=64, **data)))


def our_run(dpo, model, folder, micro):
    runtime, train, tally = tiny.single_process(folder), TrainConfig(**TRAIN, optimizer="sgd"), Tally()
    rows = encoder("llama")(PAIRS)
    assert None not in rows
    collate = preference_collator(tiny.collator("llama", model))
    policy = PolicyWithReference(model, deepcopy(model))
    split = Split(micro, 2 * MICRO // micro, runtime.rank, runtime.world)
    loader = TrainLoader([MapSource(rows, [0], shuffle=False)], [1.0], collate, split, None)
    optimizer = build_optimizer(policy, train)
    schedule = build_schedule(optimizer, train, STEPS)
    wrapped, optimizer = runtime.prepare(policy.train(), optimizer)
    lines = []
    for step in range(STEPS):
        tally.clear()
        objective = dpo_objective(dpo, tally)
        result = train_step(runtime, wrapped, optimizer, loader.batches(step), objective, train.max_grad_norm)
        schedule.step()
        lines.append({"loss": result.loss, "grad_norm": result.grad_norm, **tally.means(runtime)})
    return lines


def trl_run(keys, model, folder, micro):
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in PAIRS]
    settings = DPOConfig(
        output_dir=str(folder),
        **TRAIN,
        **keys,
        **QUIET,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=2 * MICRO // micro,
        train_sampling_strategy="sequential",
    )
    trainer = DPOTrainer(
        model,
        deepcopy(model),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer("llama"),
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "grad_norm" in line]


@pytest.mark.parametrize("name", LOSSES)
def test_trajectory_is_that_of_trl(name, tmp_path):
    """Where cross-entropy is part of it, a micro-batch is one pair: TRL takes the mean over a micro-batch's tokens,
    which depends on how rows are put together, and we over each response's."""
    model, micro = tiny.model("llama"), 1 if "sft" in name else MICRO
    start, their_model = deepcopy(model), deepcopy(model)
    ours = our_run(DPOSettings(**OURS.get(name, {"loss": name})), model, tmp_path / "ours", micro)
    theirs = trl_run(LOSSES[name], their_model, tmp_path / "trl", micro)
    assert len(ours) == len(theirs) == STEPS
    for mine, their in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"):
            assert mine[key] == pytest.approx(float(their[key]), rel=2e-5, abs=2e-5), key
        assert mine["rewards/accuracies"] == pytest.approx(float(their["rewards/accuracies"]))
    their_weights = their_model.state_dict()
    for key, weight in model.state_dict().items():
        assert (weight - their_weights[key]).abs().max() <= 1e-5, key
    assert max((weight - start.state_dict()[key]).abs().max() for key, weight in their_weights.items()) > 1e-2


def pairs_of(count=6):
    torch.manual_seed(0)
    lengths = torch.randint(1, 9, (2, count))
    logps = (-lengths * (torch.rand(2, count) * 3 + 1e-3)).requires_grad_()
    return logps, Pairs(logps, logps, lengths)


@pytest.mark.parametrize(
    "keys",
    [
        {"loss": "orpo", "beta": 0.2},
        {"loss": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0},
        {"loss": "simpo", "label_smoothing": 0.1, "cpo_alpha": 0.3},
        {"loss": "cpo", "cpo_alpha": 0.5},
        {"loss": "cpo", "label_smoothing": 0.1},
    ],
)
def test_losses_without_a_reference_are_those_of_trl(keys):
    dpo = DPOSettings(**keys)
    logps, pairs = pairs_of()
    ours = pair_losses(pairs, dpo).mean()
    [our_gradient] = torch.autograd.grad(ours, logps, retain_graph=True)

    trainer = SimpleNamespace(
        alpha=0.0,
        beta=dpo.beta,
        loss_type="simpo" if dpo.loss == "simpo" else "sigmoid",
        simpo_gamma=dpo.simpo_gamma,
        label_smoothing=dpo.label_smoothing,
        accelerator=SimpleNamespace(device="cpu"),
    )
    nll = -(logps[0] / pairs.lengths[0]).mean()
    if dpo.loss == "orpo":
        theirs = nll - ORPOTrainer.odds_ratio_loss(trainer, *(logps / pairs.lengths))[0].mean()
    else:
        read = logps if dpo.loss == "cpo" else logps / pairs.lengths
        theirs = CPOTrainer.cpo_loss(trainer, *read)[0].mean() + dpo.cpo_alpha * nll
    [their_gradient] = torch.autograd.grad(theirs, logps)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert (our_gradient - their_gradient).abs().max() <= 1e-6


def test_an_encoder_decoder_is_that_of_plain_torch():
    """Also beside a filler, which adds nothing."""
    model, dpo = tiny.model("t5"), DPOSettings()
    reference = deepcopy(model)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    plain = deepcopy(model)
    rows = encoder("t5", "seq2seq_lm")(PAIRS[:3])
    policy = PolicyWithReference(model, reference).eval()
    collate = preference_collator(tiny.collator("t5", model))
    batch = collate([*rows, None])
    assert batch.num_labels == 3
    ours = dpo_objective(dpo, Tally())(policy, batch)
    ours.backward()

    def logp(of, row):
        ids, labels = (torch.tensor(part[None].tolist()) for part in (row.input_ids, row.labels))
        log_p = of(input_ids=ids, labels=labels).logits.log_softmax(dim=-1)
        return log_p.gather(2, labels[..., None]).sum()

    theirs = torch.zeros(())
    for row in rows:
        with torch.no_grad():
            before = logp(reference.eval(), row.chosen) - logp(reference, row.rejected)
        theirs = theirs - F.logsigmoid(dpo.beta * (logp(plain.eval(), row.chosen) - logp(plain, row.rejected) - before))
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-5, name


def test_pairs_are_cut_alike_and_left_out_with_a_reason():
    made = encoder("llama", too_long="truncate")
    long = "x" * 40
    pairs = [
        Preference(long, " short", " " + "y" * 99),
        Preference("x" * 99, " a", " b"),
        Preference("same", " a", " a"),
        Preference("empty", " ", " b"),
    ]
    first, *others = made(pairs)
    assert others == [None] * 3
    assert made.left_out == {"unlearned": 1, "equal": 1, "empty": 1}
    assert len(first.rejected.input_ids) == 64
    prompts = [row.input_ids[row.labels == IGNORE].tolist() for row in (first.chosen, first.rejected)]
    assert prompts[0] == prompts[1]


def test_a_conversation_is_learned_from_its_last_answer_alone():
    tokenizer = tiny.tokenizer("llama")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    said = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("good", "bad one"))
    made = PreferenceEncoder(Encoder(tokenizer, "causal_lm", tiny.data_config(max_length=256)))
    [row] = made([Preference(Chat(said), chosen, rejected)])
    learned = [tokenizer.decode(side.labels[side.labels != IGNORE]) for side in (row.chosen, row.rejected)]
    assert learned == ["good<end>", "bad one<end>"]
