"""This module trains a student on its own answers (on-policy distillation; Agarwal et al. 2024): it answers the prompts
of the training rows, and learns its teacher's distribution at each token of its own answer. The loop is TRL's; the
order of rows, the optimizer, its schedule, records, checkpoints and stopping are those of every other stage.

Before a step each rank draws from a seed made of the run's, the step and the rank: so a run that goes on answers as one
that was never stopped."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig as TRLConfig
from trl import DistillationTrainer

from scaleup.artifacts.train_state import TrainState
from scaleup.config.stages.distill import DistillConfig
from scaleup.data.chat import answer_ends
from scaleup.data.prompts import Prompt, PromptOrder, read_prompts
from scaleup.data.tokenization import Encoder
from scaleup.distill.train import shared_ids
from scaleup.distributed.deferred import fill
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.errors import ScaleupError
from scaleup.models.adapted import load_finished
from scaleup.models.load import load_tokenizer
from scaleup.plan.arithmetic import epochs_to_rows, rows_to_steps
from scaleup.plan.types import BatchPlan, Plan
from scaleup.train.checkpoint import Checkpointer, sound_checkpoint
from scaleup.train.finish import TrainedModel
from scaleup.train.fit import is_due, stop_run
from scaleup.train.job import Job
from scaleup.train.metrics import MetricsLog, peak_memory_mib
from scaleup.train.model import trainable_model
from scaleup.train.optim import build_optimizer, build_schedule


def train_on_policy(job: Job[DistillConfig]) -> TrainedModel:
    """Trains the student on its own answers to the prompts of the training rows.

    Raises ScaleupError as reading and loading do and where the loss is not finite, and Stopped after a signal."""
    config, plan, runtime = job.config, job.plan, job.runtime
    assert plan.batch is not None
    runtime.progress.report("reading prompts")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    encoder = Encoder(tokenizer, plan.model.task, config.data)
    train, held_out = (read_prompts(config.data, split, encoder, runtime.progress) for split in ("train", "validation"))
    num_steps = _num_steps(config, plan.batch, sum(len(prompts) for prompts in train))
    newest = sound_checkpoint(runtime, job.folder)
    done, rows = newest.step if newest else 0, plan.batch.global_batch
    order = PromptOrder(train, [s.weight for s in config.data.train or []], config.train.seed, config.data.shuffle)

    runtime.progress.report("loading the model and its teacher")
    student = trainable_model(config, plan.model, runtime.device)
    fill(student, runtime.device)  # whole on every rank: the plan refuses other strategies
    teacher = load_finished(config.teacher, plan.models["teacher"], None, config.mixed_precision, runtime.device)
    student.generation_config.eos_token_id = answer_ends(tokenizer, student)  # where TRL ends an answer
    num_ids = shared_ids(tokenizer, plan.model, plan.models["teacher"])
    if num_ids is not None:  # TRL compares what the configs say; nothing else reads it
        teacher.config.get_text_config().vocab_size = plan.model.vocab_size
    optimizer = build_optimizer(student, config.train)
    schedule = build_schedule(optimizer, config.train, num_steps)
    with tempfile.TemporaryDirectory() as unused:  # TRL wants a folder for checkpoints, which are ours
        trainer = OnPolicyTrainer(
            model=student,
            teacher_model=teacher.requires_grad_(False),
            args=_arguments(config, plan, runtime, num_steps - done, unused, num_ids),
            train_dataset=_dataset(order[position] for position in range(done * rows, num_steps * rows)),
            eval_dataset=_dataset(prompt for prompts in held_out for prompt in prompts) if held_out else None,
            processing_class=deepcopy(tokenizer),  # which TRL gives a pad token where there is none
            optimizers=(optimizer, schedule),
        )
        trainer.num_ids = num_ids
        steps = Steps(job, trainer, num_steps)
        trainer.train()
    if steps.state.step < num_steps:
        stop_run(runtime, job.folder, steps.checkpointer, steps.state, num_steps)
    steps.checkpointer.wait()
    runtime.progress.heartbeat.end_steps()
    steps.metrics.close()
    return TrainedModel(trainer.model_wrapped, tokenizer, steps.state, left_out={})


class OnPolicyTrainer(DistillationTrainer):
    """Adapts TRL's trainer to prompts that are token ids already, and to a run's own checkpoints."""

    save: Callable[[], None]
    num_ids: int | None = None
    """Counts the ids of both distributions, where the models' embeddings are padded to different sizes; None: all."""

    def _compute_loss(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        models = unwrapped_student, self.accelerator.unwrap_model(self.teacher_model)
        with _cut_heads(models, self.num_ids):
            return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save()


@contextmanager
def _cut_heads(models: Iterable[Any], num_ids: int | None) -> Iterator[None]:
    """Let TRL's loss, which takes weight and bias of a model's head, see those of the first ids alone."""
    cut = [] if num_ids is None else list(models)
    for model in cut:
        head = model.get_output_embeddings()
        part = SimpleNamespace(weight=head.weight[:num_ids], bias=None if head.bias is None else head.bias[:num_ids])
        model.get_output_embeddings = partial(lambda part: part, part)
    try:
        yield
    finally:
        for model in cut:
            del model.get_output_embeddings


class Steps(TrainerCallback):
    """Does what the run needs around TRL's steps, which start from 0 in each attempt."""

    checkpointer: Checkpointer[TrainState]

    def __init__(self, job: Job[DistillConfig], trainer: OnPolicyTrainer, num_steps: int) -> None:
        self.config = job.config
        self.runtime = job.runtime
        self.folder = job.folder
        self.trainer = trainer
        self.num_steps = num_steps
        self.state = TrainState()
        self.tokens_before = 0
        trainer.save = lambda: self.checkpointer.save(self.state)
        trainer.add_callback(self)
        trainer.remove_callback(PrinterCallback)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        self.checkpointer = Checkpointer(
            self.runtime.around(trainer.accelerator),
            self.folder,
            trainer.model_wrapped,
            trainer.optimizer,
            trainer.lr_scheduler,
            self.config.train,
        )
        self.state = self.checkpointer.restore()
        self.tokens_before = self.state.num_tokens
        shown = self.config.shown()
        self.metrics = MetricsLog(self.runtime, self.folder, self.config.name, shown, self.state.step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.runtime.progress.heartbeat.begin_step(self.state.step + 1)
        self.runtime.progress.enter_phase("answering and learning")
        entropy = (self.config.train.seed, self.state.step, self.runtime.rank)
        seed_everything(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        train, last = self.config.train, self.num_steps
        self.state.step += 1
        self.state.num_tokens = self.tokens_before + state.num_input_tokens_seen
        step = self.state.step
        control.should_log = is_due(train.logging_steps, step, last)
        control.should_evaluate = self.trainer.eval_dataset is not None and is_due(train.eval_steps, step, last)
        stop, save = self.runtime.sum(self.runtime.stop.requested, self.checkpointer.is_time())
        control.should_save = step < last and (save > 0 or is_due(train.save_steps, step, last))  # the result follows
        control.should_training_stop = step == last or stop > 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "train_runtime" in logs:  # TRL's summary of an attempt
            return
        values = {name: value for name, value in logs.items() if not name.endswith(SKIPPED_METRICS)}
        if not math.isfinite(values.get("loss", 0.0)):
            raise ScaleupError.of(
                f"training step {self.state.step}", f"the loss is {values['loss']}", "lower train.learning_rate"
            )
        if "loss" in values:
            values |= {"num_tokens": self.state.num_tokens, "memory_mib": peak_memory_mib(self.runtime.device)}
            self.runtime.progress.report("training", self.state.step, self.num_steps, loss=round(values["loss"], 4))
        else:
            self.state.note_evaluation(values["eval_loss"], threshold=0.0)
        self.metrics.log(self.state.step, **values)


SKIPPED_METRICS = ("epoch", "eval_num_tokens", "_per_second", "_runtime")
"""Lists ends of names of TRL's metrics that a run's own metrics hold already, or that nobody needs."""


def _num_steps(config: DistillConfig, batch: BatchPlan, num_prompts: int) -> int:
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.num_train_epochs is not None, "the plan refuses anything else"
    return rows_to_steps(epochs_to_rows(config.train.num_train_epochs, num_prompts), batch.global_batch)


def _dataset(prompts: Iterable[Prompt]) -> Dataset:
    return Dataset.from_dict({"prompt": [list(prompt.ids) for prompt in prompts]})


def _arguments(
    config: DistillConfig, plan: Plan, runtime: Runtime, num_steps: int, folder: str, num_ids: int | None
) -> TRLConfig:
    """Returns the settings of TRL's trainer. Logging, evaluation and saving are requested step by step (`Steps`)."""
    train, generation, batch = config.train, config.distill.generation, plan.batch
    assert batch is not None
    drawn: dict[str, Any] = {"temperature": generation.temperature, "top_p": generation.top_p}
    if num_ids is not None and num_ids < plan.model.vocab_size:
        drawn["suppress_tokens"] = list(range(num_ids, plan.model.vocab_size))  # the teacher may have no such embedding
    return TRLConfig(
        output_dir=folder,
        max_steps=num_steps,
        per_device_train_batch_size=batch.micro_batch,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=batch.accumulation,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        beta=config.distill.jsd_beta,
        max_completion_length=generation.max_new_tokens,
        generation_kwargs=drawn,
        shuffle_dataset=False,
        gradient_checkpointing=False,  # the student has it already where it is asked for
        bf16=config.mixed_precision == "bf16",
        use_cpu=runtime.device.type == "cpu",
        ddp_find_unused_parameters=False,
        eval_strategy="no",
        logging_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
    )
