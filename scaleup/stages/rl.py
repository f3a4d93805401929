"""Prompts go in; a better policy comes out as a model folder, with samples and a manifest: prompts -> responses ->
rewards -> updates, by any algorithm. In a reward group texts go in, and scores for the policy come out."""

from __future__ import annotations

from contextlib import closing
from itertools import chain

from scaleup.config.stages.rl import PolicyConfig
from scaleup.data.dataset import collator_for
from scaleup.data.prompts import PromptOrder, read_prompts
from scaleup.data.tokenization import Encoder
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.runtime import seed_everything
from scaleup.evaluation.while_training import figures_of_responses
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.models.rollout import sampling_of
from scaleup.rl.algorithms import algorithm_of
from scaleup.rl.finish import finish_rl
from scaleup.rl.generators import generator_of
from scaleup.rl.loop import run_rl
from scaleup.rl.policy import policy_of
from scaleup.rl.rewards.build import rewards_of, serve_rewards
from scaleup.rl.run import RL
from scaleup.rl.supervised import read_supervised, supervised_term
from scaleup.train.job import Job
from scaleup.train.model import trainable_model
from scaleup.train.optim import build_optimizer, build_schedule


def run(job: Job[PolicyConfig]) -> None:
    config, plan, runtime = job.config, job.plan, job.runtime
    if runtime.group.name != "policy":
        serve_rewards(job)
        return
    runtime.progress.report("reading prompts")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    encoder = Encoder(tokenizer, plan.model.task, config.data)
    sources = read_prompts(config.data, "train", encoder, runtime.progress)
    weights = [source.weight for source in config.data.train or []]
    held_out = list(chain.from_iterable(read_prompts(config.data, "test", encoder, runtime.progress)))

    figures = figures_of_responses(job, held_out)
    rows = read_supervised(config, encoder, runtime.progress)

    runtime.progress.report("loading the model")
    algorithm, rollouts = algorithm_of(config.policy_gradient), config.rollout_settings
    model = trainable_model(config, plan.model, runtime.device)
    is_new = plan.model.adapter is None and getattr(config.adapter, "path", None) is None
    policy = policy_of(model, algorithm.settings, rollouts.temperature, config.has_reference, is_new)
    wrapped, optimizer = runtime.prepare(policy, build_optimizer(policy, config.train))
    schedule = build_schedule(base_optimizer(optimizer), config.train, rollouts.num_optimizer_steps)
    seed_everything(config.train.seed)

    supervised = None
    if rows:
        shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        collate = collator_for(plan.model.task, pad_token_id(tokenizer), shift_right)
        supervised = supervised_term(rows, collate, runtime, algorithm.settings, config.train)

    length = rollouts.max_new_tokens, rollouts.temperature, rollouts.response_length_min
    with closing(rewards_of(job)) as rewards, closing(generator_of(job, wrapped)) as generator:
        state = run_rl(
            RL(
                name=config.name,
                algorithm=algorithm,
                rollouts=rollouts,
                train=config.train,
                hyperparameters=config.shown(),
                runtime=runtime,
                run=job.folder,
                model=wrapped,
                optimizer=optimizer,
                schedule=schedule,
                prompts=PromptOrder(sources, weights, config.train.seed, config.data.shuffle),
                held_out=held_out,
                rewards=rewards,
                generator=generator,
                sampling=sampling_of(model, tokenizer, *length),
                tokenizer=tokenizer,
                quantization=config.quantization,
                supervised=supervised,
                timeline=job.timeline,
                names=config.metric_names,
                figures=figures,
            )
        )
    finish_rl(job, wrapped, tokenizer, state)
