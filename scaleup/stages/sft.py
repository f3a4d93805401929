"""Supervised fine-tuning: rows -> tokens -> the one loop -> a model folder, its card and a manifest."""

from __future__ import annotations

from collections.abc import Iterable

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import SFTConfig
from scaleup.data.collate import Batch
from scaleup.data.dataset import collator_for, load_training_data, train_loader
from scaleup.data.loader import Split, eval_batches
from scaleup.data.tokenization import Encoder
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.evaluation.report import finish_training
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.plan.types import Plan
from scaleup.train.fit import Fit, fit
from scaleup.train.losses import token_loss_sum
from scaleup.train.model import model_to_train
from scaleup.train.optim import build_optimizer, build_schedule


def run(config: SFTConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    assert plan.batch is not None
    train = config.train
    runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_location or plan.model.location)
    data = load_training_data(config, Encoder(tokenizer, plan.model.task, config.data))

    runtime.progress.report("loading the model")
    model = model_to_train(config, plan.model, runtime.device)
    shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    collate = collator_for(plan.model.task, pad_token_id(tokenizer), shift_right, config.data.packing)
    split = Split(plan.batch.micro_batch, plan.batch.accumulation, runtime.rank, runtime.world)
    loader, num_steps = train_loader(config, data, collate, split)

    wrapped, optimizer = runtime.prepare(model, build_optimizer(model, train))
    schedule = build_schedule(base_optimizer(optimizer), train, num_steps)
    seed_everything(train.seed + 1 + runtime.rank)  # dropout differs between ranks

    def validation() -> Iterable[Batch]:
        return eval_batches(data.validation, collate, train.per_device_eval_batch_size, runtime.rank, runtime.world)

    state = fit(
        Fit(
            config=config,
            runtime=runtime,
            run=folder,
            model=wrapped,
            optimizer=optimizer,
            schedule=schedule,
            loader=loader,
            num_steps=num_steps,
            objective=token_loss_sum,
            validation=validation if data.validation else None,
        )
    )
    finish_training(config, plan, runtime, folder, wrapped, tokenizer, state, data.num_dropped)
