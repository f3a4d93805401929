"""What a finished PPO run leaves behind: the policy as an ordinary model or adapter, its values beside it, samples
before and after, reward against KL, and last the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import folder_aside, read_json, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import PPOConfig
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.report import finish, model_card, read_metrics
from scaleup.models.adapters import forget_start, is_adapted, save_adapter, save_over_base
from scaleup.models.load import load_model
from scaleup.plan.types import Plan
from scaleup.train.state import TrainState

POLICY = "policy."


def finish_ppo(
    config: PPOConfig,
    plan: Plan,
    runtime: Runtime,
    run: RunFolder,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    state: TrainState,
) -> None:
    """Write everything from rank 0; the other ranks wait for it. `model` is a prepared Policy."""
    runtime.progress.report("writing the model")
    trained = runtime.trained_state(model)
    if runtime.is_main:
        lines = read_metrics(run.metrics_file)
        metrics = ppo_summary(lines, state)
        policy = {name.removeprefix(POLICY): part for name, part in trained.items() if name.startswith(POLICY)}
        values = {name: part.contiguous() for name, part in trained.items() if not name.startswith(POLICY)}
        whole = runtime.accelerator.unwrap_model(model, keep_fp32_wrapper=False).policy
        with folder_aside(run.model) as aside:
            if is_adapted(whole):
                forget_start(whole)
                save_adapter(whole, aside, policy)
            else:
                save_over_base(load_model(config.model, plan.model), aside, policy)
            tokenizer.save_pretrained(aside)
            write_text(aside / "README.md", model_card(config, plan, metrics))
        with folder_aside(run.path / "values") as aside:
            aside.mkdir(parents=True, exist_ok=True)
            save_file(values, aside / "values.safetensors", {"format": "pt"})
        plot_rewards(lines, run.path / "reward.png", config.name)
        write_text(run.path / "samples.md", sample_table(run.path / "samples"))
        finish(run, config.stage, config.name, metrics, state.step)
    runtime.barrier()


def ppo_summary(lines: list[dict[str, Any]], state: TrainState) -> dict[str, Any]:
    """The last rollout, and held-out prompts before and after."""
    rollouts = [line for line in lines if "objective/scores" in line]
    held_out = [line for line in lines if "eval/scores" in line]
    last = rollouts[-1] if rollouts else {}
    found: dict[str, Any] = {
        "scores": last.get("objective/scores"),
        "kl": last.get("objective/kl"),
        "num_tokens": state.num_tokens,
    }
    if held_out:
        before, after = held_out[0], held_out[-1]
        found |= {
            "held_out_before": before["eval/scores"],
            "held_out_before_std": before["eval/scores_std"],
            "held_out_after": after["eval/scores"],
            "held_out_after_std": after["eval/scores_std"],
            "held_out_kl": after["eval/kl"],
        }
    return found


def sample_table(folder: Path) -> str:
    """Held-out responses of the first and the last evaluation, as Markdown."""
    files = sorted(folder.glob("rollout-*.json"))
    if not files:
        return "No held-out prompts: data.test was not given.\n"
    first, last = read_json(files[0]), read_json(files[-1])
    rows = [
        f"| {_cell(old['prompt'])} | {_cell(old['response'])} | {old['score']:.3f} "
        f"| {_cell(new['response'])} | {new['score']:.3f} |"
        for old, new in zip(first, last, strict=True)
    ]
    return "\n".join(["| prompt | before | score | after | score |", "|---|---|---|---|---|", *rows]) + "\n"


def _cell(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|")


def plot_rewards(lines: list[dict[str, Any]], file: Path, title: str) -> None:
    """Scores by rollout, and against the KL that they cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), dpi=120)
    rollouts = [line for line in lines if "objective/scores" in line]
    held_out = [line for line in lines if "eval/scores" in line]
    for axes, key, other, label in (
        (left, "step", "step", "rollout"),
        (right, "objective/kl", "eval/kl", "KL to the reference (nats a response)"),
    ):
        axes.plot(
            [line[key] for line in rollouts], [line["objective/scores"] for line in rollouts], ".-", label="rollouts"
        )
        axes.plot([line[other] for line in held_out], [line["eval/scores"] for line in held_out], "o", label="held out")
        axes.set(xlabel=label, ylabel="mean score")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.tight_layout()
    aside = file.with_name(f".{file.name}.tmp")
    figure.savefig(aside, format="png")
    aside.replace(file)
    pyplot.close(figure)
