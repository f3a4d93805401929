"""One training run, by TRL's SFTTrainer and by our pieces, on the same rows: the same tokens, losses and weights."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Seq2SeqTrainer, Seq2SeqTrainingArguments
from trl import SFTConfig, SFTTrainer

from scaleup.config.schema import TrainConfig
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import IGNORE, Encoder
from scaleup.records.examples import PromptCompletion
from scaleup.train.losses import token_loss_sum
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.step import train_step
from tests.unit.data import tiny

pytestmark = pytest.mark.covers("parity")
STEPS, MICRO, ACCUMULATION = 8, 4, 2
MAX_LENGTH = 64
EXAMPLES = [
    PromptCompletion(
        f"Review: it was {'so ' * (index % 7)}long.\nSentiment:", f" {'good' if index % 3 else 'very bad'}"
    )
    for index in range(STEPS * MICRO * ACCUMULATION)
]
ODD_ONES = [
    PromptCompletion("already ended:", " yes<|im_end|>"),
    PromptCompletion("cut short:", " it goes on and on and on and on and on and on and on and on"),
    PromptCompletion("a prompt that leaves no room at all for even a single token of its answer", " none"),
]
TRAIN = {
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_steps": STEPS,
    "max_grad_norm": 1.0,
}


def arguments(kind, folder, **keys):
    return kind(
        output_dir=str(folder),
        **TRAIN,
        optim="sgd",
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ACCUMULATION,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **keys,
    )


def trl_trainer(model, tokenizer, folder, examples, completion_only=True):
    rows = [{"prompt": example.prompt, "completion": example.completion} for example in examples]
    settings = arguments(SFTConfig, folder, max_length=MAX_LENGTH, completion_only_loss=completion_only)
    return SFTTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def logged(trainer):
    trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    return [line["loss"] for line in lines], [float(line["grad_norm"]) for line in lines]


def our_run(name, model, rows, folder):
    runtime = tiny.single_process(folder)
    train = TrainConfig(**TRAIN, optimizer="sgd")
    split = Split(MICRO, ACCUMULATION, runtime.rank, runtime.world)
    loader = TrainLoader([MapSource(rows, [0], shuffle=False)], [1.0], tiny.collator(name, model), split, None)
    optimizer = build_optimizer(model, train)
    schedule = build_schedule(optimizer, train, STEPS)
    model, optimizer = runtime.prepare(model.train(), optimizer)
    losses, norms = [], []
    for step in range(STEPS):
        result = train_step(runtime, model, optimizer, loader.batches(step), token_loss_sum, train.max_grad_norm)
        schedule.step()
        losses.append(result.loss)
        norms.append(result.grad_norm)
    return losses, norms


def assert_same_run(ours, theirs, our_model, their_model, start):
    (our_losses, our_norms), (their_losses, their_norms) = ours, theirs
    assert len(our_losses) == len(their_losses) == STEPS
    assert our_losses == pytest.approx(their_losses, abs=1e-5)
    # norms are above 1, sums over all weights: what rounding leaves grows with them, and differs between CPUs
    assert our_norms == pytest.approx(their_norms, rel=1e-5)
    assert max(our_norms) > TRAIN["max_grad_norm"], "clipping had something to do"
    their_weights, start_weights = their_model.state_dict(), start.state_dict()
    for name, weight in our_model.state_dict().items():
        assert (weight - their_weights[name]).abs().max() <= 1e-5, name
    moved = max((weight - start_weights[name]).abs().max() for name, weight in their_weights.items())
    assert moved > 1e-2, "the run had an effect"


@pytest.mark.parametrize("completion_only", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tokens_are_those_of_trl(name, completion_only, tmp_path):
    """TRL 1.16 puts the eos token's text behind a completion that does not end with it, tokenizes prompt and completion
    together, lets the completion start where that leaves the prompt's own tokens, cuts at max_length and drops rows
    without a label left. For a tokenizer that merges nothing across the seam our rows are the same, token by token."""
    examples = EXAMPLES[:8] + ODD_ONES
    theirs = trl_trainer(tiny.model(name), tiny.tokenizer(name), tmp_path, examples, completion_only).train_dataset
    encoder = Encoder(
        tiny.tokenizer(name), "causal_lm", tiny.data_config(max_length=MAX_LENGTH, completion_only_loss=completion_only)
    )
    ours = [row for row in encoder(examples) if row is not None]
    assert [row.input_ids.tolist() for row in ours] == theirs["input_ids"]
    assert [row.labels.tolist() for row in ours] == theirs["labels"]
    assert len(ours) == len(examples) - completion_only, "the row without room is left out where only answers count"
    assert sum(len(row.input_ids) == MAX_LENGTH for row in ours) == 2 - completion_only


def test_tokens_differ_from_trl_where_a_token_spans_the_seam(tmp_path):
    """By design: TRL trains on the joint tokens, and the prompt's last characters become part of the completion's first
    token, a context that generation never starts from (it warns so). Ours keeps the prompt as generation has it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=262,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["is:good"] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    example = PromptCompletion("is:", "good")
    joint, prompt = tokenizer("is:good")["input_ids"], tokenizer("is:")["input_ids"]
    assert joint[: len(prompt)] != prompt

    encoder = Encoder(tokenizer, "causal_lm", tiny.data_config())
    [ours] = encoder([example])
    [theirs] = trl_trainer(tiny.model("llama"), tokenizer, tmp_path, [example]).train_dataset
    assert theirs["input_ids"] == [*joint, tokenizer.eos_token_id]
    assert ours.input_ids[: len(prompt)].tolist() == prompt == encoder.prompts([example])[0]
    assert tokenizer.decode(ours.input_ids) == tokenizer.decode(theirs["input_ids"]) == "is:good<|im_end|>"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_trajectory_is_that_of_trl(name, tmp_path):
    """SGD, constant rate, clipping, micro-batch 4 x accumulation 2, loss on completions of different lengths."""
    their_model, our_model = tiny.model(name), tiny.model(name)
    theirs = logged(trl_trainer(their_model, tiny.tokenizer(name), tmp_path / "trl", EXAMPLES))
    rows = tiny.encode(name, EXAMPLES, max_length=MAX_LENGTH)
    ours = our_run(name, our_model, rows, tmp_path / "ours")
    assert_same_run(ours, theirs, our_model, their_model, tiny.model(name))


@pytest.mark.parametrize("name", ["t5"])
def test_trajectory_is_that_of_the_seq2seq_trainer(name, tmp_path):
    """With the loss summed and divided by the trainer's own `num_items_in_batch`.

    T5 in Transformers 5.23 takes that number and does not use it: its loss is the micro-batch's mean, and the trainer,
    which thinks the loss is scaled already, then sums the micro-batches. So it must be given the loss to compare."""

    def loss_of(outputs, labels, num_items_in_batch):
        loss = torch.nn.functional.cross_entropy(
            outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return loss / num_items_in_batch

    tokenizer, their_model, our_model = tiny.tokenizer(name), tiny.model(name), tiny.model(name)
    rows = [
        {
            "input_ids": tokenizer(example.prompt)["input_ids"],
            "labels": tokenizer(text_target=example.completion)["input_ids"],
        }
        for example in EXAMPLES
    ]
    trainer = Seq2SeqTrainer(
        their_model,
        arguments(Seq2SeqTrainingArguments, tmp_path / "trainer"),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=their_model),
        train_dataset=Dataset.from_list(rows),
        compute_loss_func=loss_of,
    )
    theirs = logged(trainer)
    ours = our_run(name, our_model, tiny.encode(name, EXAMPLES), tmp_path / "ours")
    assert_same_run(ours, theirs, our_model, their_model, tiny.model(name))
