"""PPO on a small task: scaleup against TRL's PPOTrainer, rollout by rollout in turns.

    .venv/bin/python benchmarks/ppo.py [--peer FOLDER] [--seeds 0 1 2] [--rollouts 20] [--json OUT]

FOLDER has the last TRL that had PPO, which is loaded in place of the installed one; torch and all else are those of
this environment:

    .venv/bin/python -m pip install --no-deps --target .cache/benchmarks/trl-1.12.0 trl==1.12.0

The task is `ppo_task`: the same random policy, prompts, reward model, rollout and response sizes, passes, learning rate
and KL coefficient. Three systems take part: TRL; scaleup with a value model of its own, which is what TRL has; and
scaleup with its default, a value head on the policy. All are started at once, each in a process with one thread, and
take turns: a rollout of one, the same rollout of the next, and so on, each waiting until the others are done. What else
the machine does so hits all alike. Seconds run from the prompts to the end of the last optimizer step; the first two
rollouts are not counted. CPU seconds are those of the process, which other work disturbs less.

A rollout is one minibatch of one micro-batch: TRL's `num_mini_batches` does not change its number of optimizer steps,
so this is where both take as many, one a pass."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / ".cache/benchmarks/trl-1.12.0"
SYSTEMS = {"trl": "TRL", "separate": "scaleup, value model", "head": "scaleup, value head"}
ROLLOUT = 64
PASSES = 4
LEARNING_RATE = 3e-3
KL_COEF = 0.02
ADAM_EPSILON = 1e-5
NUM_PROMPTS = 512
WARM_UP = 2
SHOWN = 4
"""Points of the reward curve in the table."""


class Turns:
    """In a system's process: wait for a line, do a rollout, say what it took and what it gave."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self._began: tuple[float, float] | None = None
        self.responses: list[str] = []
        self.scores: list[float] = []

    def scored(self, responses: list[str], score: Any) -> list[float]:
        """The scores of responses, which are kept with them."""
        self.responses += responses
        scores: list[float] = score(responses)
        self.scores += scores
        return scores

    def next(self) -> None:
        """The end of the rollout before, if there was one, and the beginning of another, if it is asked for."""
        import ppo_task as task

        if self._began is not None:
            wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
            gold = [task.gold(text) for text in self.responses]
            found = {"seconds": wall, "cpu": cpu, "gold": statistics.mean(gold), "score": statistics.mean(self.scores)}
            found["memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            print(json.dumps(found), file=self._answers, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self.responses, self.scores = [], []
        self._began = time.perf_counter(), time.process_time()


def train_in_turns(trainer: Any, turns: Turns) -> None:
    """Train, and wait for a turn before each rollout."""
    draw = trainer._job.prompts.drawn

    def in_turns(first: int, count: int) -> Any:
        turns.next()
        return draw(first, count)

    trainer._job.prompts.drawn = in_turns
    trainer.train()


def play_ours(turns: Turns, seed: int, rollouts: int, value_model: Any, rewards: Any, folder: Path) -> None:
    import ppo_task as task

    from scaleup.rl import OptimizationConfig, PPOSettings, PPOTrainer, Sample

    def reward(samples: Sequence[Sample]) -> list[float]:
        return turns.scored([sample.response for sample in samples], rewards.score)

    trainer = PPOTrainer(
        task.policy(seed),
        task.tokenizer(),
        task.prompts(NUM_PROMPTS, seed=1),
        reward,
        PPOSettings(
            num_rollouts=rollouts + 1,
            rollout_batch_size=ROLLOUT,
            num_ppo_epochs=PASSES,
            max_new_tokens=task.MAX_NEW_TOKENS,
            kl_coef=KL_COEF,
            value_model=value_model,
        ),
        OptimizationConfig(
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_epsilon=ADAM_EPSILON,
            max_grad_norm=0,  # TRL's does not clip
            per_device_train_batch_size=ROLLOUT,
            per_device_eval_batch_size=ROLLOUT,
            seed=seed,
        ),
        output_dir=folder,
    )
    train_in_turns(trainer, turns)


def play_theirs(turns: Turns, seed: int, rollouts: int, rewards: Any, folder: Path) -> None:
    import ppo_task as task
    import torch
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer, policy, reference = task.tokenizer(), task.policy(seed), task.policy(seed)
    value = LlamaForSequenceClassification(policy.config.__class__(**{**policy.config.to_dict(), "num_labels": 1}))
    value.model.load_state_dict(policy.model.state_dict())
    torch.nn.init.zeros_(value.score.weight)

    class Reader(torch.nn.Module):
        """Where TRL expects the trunk of a reward model that has the policy's tokens."""

        def forward(self, input_ids: Any, **kwargs: Any) -> Any:
            texts = tokenizer.batch_decode(input_ids[:, task.PROMPT_WORDS :], skip_special_tokens=True)
            turns.responses += texts
            scores = rewards.score(texts)
            turns.scores += scores
            states = torch.tensor(scores)[:, None, None].expand(*input_ids.shape, 1)
            return argparse.Namespace(hidden_states=[states])

    class Reward(torch.nn.Module):
        base_model_prefix = "reader"

        def __init__(self) -> None:
            super().__init__()
            self.reader, self.score = Reader(), torch.nn.Identity()

    class InTurns(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.next()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.next()

    settings = PPOConfig(
        str(folder),
        total_episodes=(rollouts + 1) * ROLLOUT,
        per_device_train_batch_size=ROLLOUT,
        local_rollout_forward_batch_size=ROLLOUT,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=PASSES,
        response_length=task.MAX_NEW_TOKENS,
        stop_token="eos",
        temperature=1.0,
        kl_coef=KL_COEF,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_epsilon=ADAM_EPSILON,
        seed=seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = Dataset.from_list([tokenizer(text) for text in task.prompts(NUM_PROMPTS, seed=1)])
    PPOTrainer(
        settings, tokenizer, policy, reference, Reward(), rows, value, eval_dataset=rows, callbacks=[InTurns()]
    ).train()


def play(system: str, seed: int, rollouts: int, folder: Path) -> None:
    """A system's process. What others print goes to stderr; answers alone to stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import ppo_task as task
    import torch

    torch.set_num_threads(1)
    rewards = task.RewardModel(0).load(folder / "reward")
    own = folder / f"{system}-{seed}"
    if system == "trl":
        play_theirs(Turns(answers), seed, rollouts, rewards, own)
    else:
        play_ours(Turns(answers), seed, rollouts, system, rewards, own)


Found = dict[str, list[dict[str, float]]]
"""Maps each system -> what it said of each of its rollouts."""


def compare(
    script: list[str], packages: dict[str, Path | None], seed: int, rollouts: int, folder: Path, threads: int = 1
) -> Found:
    """One seed: what each system said of each of its rollouts. `packages`: each system's folder of packages that go
    before the installed ones, if it has one. `script` is run with its arguments."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    found: Found = {system: [] for system in packages}
    with ExitStack() as stack:
        started = {}
        for system, before in packages.items():
            log = stack.enter_context((folder / f"{system}-{seed}.log").open("w"))
            asked = ["--play", system, "--seeds", str(seed), "--rollouts", str(rollouts), "--folder", str(folder)]
            started[system] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, *script, *asked],
                    env=environment | ({"PYTHONPATH": str(before)} if before else {}),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
        for number in range(rollouts):
            order = list(packages)[number % len(packages) :] + list(packages)[: number % len(packages)]
            for system in order:
                process = started[system]
                assert process.stdin is not None and process.stdout is not None
                try:
                    process.stdin.write("\n")
                    process.stdin.flush()
                    found[system].append(json.loads(process.stdout.readline()))
                except (BrokenPipeError, json.JSONDecodeError):
                    log_text = (folder / f"{system}-{seed}.log").read_text()
                    sys.exit(f"{system} ended early:\n{log_text[-3000:]}")
                print(seed, number + 1, system, found[system][-1], file=sys.stderr, flush=True)
    return found


def beside_peers(results: dict[int, Found], systems: dict[str, str], peers: dict[str, str]) -> list[dict[str, Any]]:
    """What --json writes: a row for each seed and system, with its peer."""

    def of(lines: list[dict[str, float]]) -> dict[str, float]:
        means = {what: statistics.mean(line[what] for line in lines[WARM_UP:]) for what in ("seconds", "cpu")}
        return means | {"memory_mib": lines[-1]["memory_mib"]}

    return [
        {"case": name, "seed": seed, "theirs": of(found[peers[system]]), "ours": of(found[system])}
        for seed, found in results.items()
        for system, name in systems.items()
        if peers[system] != system
    ]


SCORES = {"gold": "the rule's score", "score": "reward"}


def tell(
    results: dict[int, Found], rollouts: int, systems: dict[str, str], peers: dict[str, str], shown: str = "gold"
) -> None:
    """Print tables of time and reward. `systems`: their names; `peers`: what each is compared with; `shown`: the rule's
    score, or the reward model's."""
    print("| seed | system | seconds a rollout, median | CPU seconds, median | TRL's time to this one's | CPU time |")
    print("|---|---|---|---|---|---|")
    for seed, found in results.items():
        counted = {system: lines[WARM_UP:] for system, lines in found.items()}
        for system, name in systems.items():
            wall, cpu = ([line[what] for line in counted[system]] for what in ("seconds", "cpu"))
            theirs = [[line[what] for line in counted[peers[system]]] for what in ("seconds", "cpu")]
            ratios = [sum(t) / sum(o) for t, o in zip(theirs, (wall, cpu), strict=True)]
            print(f"| {seed} | {name} | {statistics.median(wall):.3f} | {statistics.median(cpu):.3f} "
                  f"| {ratios[0]:.2f} | {ratios[1]:.2f} |")  # fmt: skip
    edges = sorted({round(i * (rollouts - 1) / SHOWN) for i in range(SHOWN + 1)})
    print(f"\n| {SCORES[shown]} in rollout | {' | '.join(str(edge + 1) for edge in edges)} |")
    print(f"|---|{'---|' * len(edges)}")
    for system, name in systems.items():
        columns = [[found[system][edge][shown] for found in results.values()] for edge in edges]
        print(f"| {name} | {' | '.join(f'{statistics.mean(column):.2f}' for column in columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=PEER, metavar="FOLDER", help="has TRL 1.12")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--play", choices=list(SYSTEMS), help="one system's process: for this script")
    parser.add_argument("--folder", type=Path, help="likewise")
    asked = parser.parse_args()
    if asked.play:
        play(asked.play, asked.seeds[0], asked.rollouts, asked.folder)
        return
    if not asked.peer.is_dir():
        parser.error(f"{asked.peer} is missing: see --help for how to fill that folder")
    import ppo_task as task

    packages = {system: asked.peer.resolve() if system == "trl" else None for system in SYSTEMS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rewards = task.RewardModel(0)
        agreement = rewards.learn()
        print(f"The reward model orders {agreement:.0%} of fresh pairs as the rule does.\n", flush=True)
        rewards.save(folder / "reward")
        results = {seed: compare([__file__], packages, seed, asked.rollouts, folder) for seed in asked.seeds}
    peers = dict.fromkeys(SYSTEMS, "trl")
    tell(results, asked.rollouts, SYSTEMS, peers)
    if asked.json:
        asked.json.write_text(json.dumps(beside_peers(results, SYSTEMS, peers)), encoding="utf-8")


if __name__ == "__main__":
    main()
