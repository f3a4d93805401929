"""What a worker checks before it trains, what two processes agree on, and runs that somebody starts by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_leniently
from scaleup.launcher.prepare import prepare_run
from scaleup.plan.resolve import resolve
from tests.cli import (
    TIMEOUT,
    Result,
    differing,
    largest_loss_difference,
    largest_weight_difference,
    logs,
    losses,
    run,
    scaleup,
    start,
    write_config,
)

CONFIG: dict[str, Any] = {
    "stage": "sft",
    "name": "launched",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 64},
    "train": {
        "max_steps": 6,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optimizer": "sgd",
        "per_device_train_batch_size": 2,
    },
    "parallel": {"num_processes": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    rows = [{"prompt": "ab" * (1 + number % 7), "completion": "c" * (1 + number % 5)} for number in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def launched(place: Path) -> Path:
    """The one-node run that the others are compared with."""
    return run(CONFIG, cwd=place)


def prepare(place: Path, changes: Mapping[str, Any]) -> RunFolder:
    """A run folder as `scaleup run` makes it, with nothing started."""
    places = {"runs_dir": str(place / "runs"), "data.root": str(place)}
    file = write_config(differing(CONFIG, {**places, **changes}), place)
    config, plan = resolve(load_leniently(file, ()))
    prepare_run(folder := RunFolder(Path(plan.run_folder)), config, plan)
    return folder


@pytest.fixture(scope="module")
def prepared(place: Path) -> RunFolder:
    return prepare(place, {"name": "by-hand"})


def python(*arguments: str | Path, cwd: Path, timeout: float = TIMEOUT) -> Result:
    command = [sys.executable, *map(str, arguments)]
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{command} took longer than {timeout} s\n{error.stdout}\n{error.stderr}") from None
    return Result(done.returncode, done.stdout, done.stderr)


def launch(file: Path, *arguments: str | Path, cwd: Path) -> Result:
    return python("-m", "accelerate.commands.launch", "--config_file", file, *arguments, cwd=cwd)


@pytest.mark.slow
def test_auto_becomes_ddp_where_the_model_fits(launched: Path, place: Path) -> None:
    """The config keeps the word, the plan says what it is and why, and workers check that."""
    config = differing(CONFIG, {"name": "auto", "parallel.strategy": "auto"})
    result = scaleup("run", write_config(config, place), cwd=place)
    folder = place / "runs" / "auto"
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert "strategy ddp: each of 2 processes holds the whole model; chosen by auto: it needs" in result.stdout
    group = json.loads((folder / "plan.json").read_text())["groups"][0]
    assert (group["strategy"], group["engine"]) == ("ddp", "DistributedDataParallel")
    assert yaml.safe_load((folder / "config.yaml").read_text())["parallel"]["strategy"] == "auto"
    assert losses(folder) == losses(launched)


def test_a_worker_started_alone_refuses_a_plan_for_two(prepared: RunFolder, place: Path) -> None:
    result = python("-m", "scaleup.worker", prepared.path, "policy", cwd=place)
    assert result.code == 2
    assert "error: group policy: the plan is 2 processes, and 1 were started" in result.stderr
    assert "Traceback" not in result.stderr
    assert not prepared.metrics_file.exists()


def test_a_launch_file_that_silently_starts_one_process_is_noticed(prepared: RunFolder, place: Path) -> None:
    """MULTI_CPU looks right in an accelerate file, and starts one process without a word."""
    settings = yaml.safe_load(prepared.launch_file("policy").read_text())
    file = place / "multi_cpu.yaml"
    file.write_text(yaml.safe_dump(settings | {"distributed_type": "MULTI_CPU", "use_cpu": True}))
    result = launch(file, "-m", "scaleup.worker", prepared.path, "policy", cwd=place)
    assert result.code != 0
    assert "the plan is 2 processes, and 1 were started" in result.stderr
    assert not prepared.metrics_file.exists()


@pytest.mark.slow
def test_a_prepared_run_can_be_started_by_hand(prepared: RunFolder, launched: Path, place: Path) -> None:
    file = prepared.launch_file("policy")
    result = launch(file, "-m", "scaleup.worker", prepared.path, "policy", cwd=place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    assert prepared.manifest() is not None
    assert "training: 6/6" in result.stdout
    assert largest_loss_difference(launched, prepared.path) == 0
    assert largest_weight_difference(launched, prepared.path) == 0


@pytest.mark.slow
def test_two_nodes_train_as_one(launched: Path, place: Path) -> None:
    """The second one first; the first finds an address and a port."""
    parallel = {"num_processes": 2, "num_nodes": 2}
    file = write_config(differing(CONFIG, {"name": "two-nodes", "parallel": parallel}), place)
    folder = place / "runs" / "two-nodes"
    with start("run", file, "--node-rank", "1", cwd=place) as second, start("run", file, cwd=place) as first:
        try:
            ends = [process.communicate(timeout=TIMEOUT) for process in (second, first)]
        except subprocess.TimeoutExpired:
            first.kill()
            second.kill()
            raise AssertionError(f"two nodes took longer than {TIMEOUT} s\n{logs(folder)}") from None
    assert (first.returncode, second.returncode) == (0, 0), f"{ends}\n{logs(folder)}"
    assert [file.stem for file in sorted(folder.glob("attempts/*/workers/*.json"))] == ["policy-rank0", "policy-rank1"]
    assert len(losses(folder)) == 6
    difference = largest_loss_difference(launched, folder), largest_weight_difference(launched, folder)
    print(f"two nodes: largest difference of a loss {difference[0]:.1e}, of a weight {difference[1]:.1e}")
    assert max(difference) <= 1e-6


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict[str, Any]]:
    """What each rank of cases.py saw."""
    folder = prepare(place, {"name": "cases"})
    script = Path(__file__).with_name("cases.py")
    result = launch(folder.launch_file("policy"), script, folder.path, place, cwd=place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    ranks = [json.loads((place / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["place"] for rank in ranks] == [[0, 2], [1, 2]]
    return ranks


def test_sums_and_flags_are_the_same_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["sums"] == [3.0, 2.0**31 + 1, 0.2]
        assert rank["anys"] == [True, True, True, False]


def test_evaluation_sees_every_row_once(ranks: list[dict[str, Any]]) -> None:
    for count in (13, 8, 1):
        shares = [rank["evaluation_rows"][str(count)] for rank in ranks]
        assert len(shares[0]) == len(shares[1]), "ranks must have equally many batches"
        lengths = [length for share in shares for batch in share for length in batch if length > 1]
        assert sorted(lengths) == list(range(2, 2 + count))


def test_answers_come_in_the_order_of_the_prompts(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        alone = rank["answers"]["alone"]
        assert len(set(alone)) > 1
        assert rank["answers"]["five"] == alone
        assert rank["answers"]["one"] == alone[:1]
        assert rank["answers"]["drawn"] == rank["answers"]["drawn alone"]
        assert all(one != other for one, other in rank["answers"]["drawn"])


def test_an_engine_that_was_not_planned_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        refusal, planned = rank["unplanned_engine"]
        assert "engine: the plan says 'none', and 'DistributedDataParallel' came up" in refusal
        assert planned is None


def test_a_world_that_was_not_planned_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        world, kind, backend = rank["unplanned_world"]
        assert "the plan is 3 processes, and 2 were started" in world
        assert "distributed type: the plan says 'MULTI_GPU', and 'MULTI_CPU' came up" in kind
        assert "backend: the plan says 'nccl', and 'gloo' came up" in backend


def test_a_signal_to_one_rank_stops_all_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    assert [rank["one_signal_stops_all"] for rank in ranks] == [[3, 0], [3, 1]]


def test_a_disk_that_is_full_for_one_rank_stops_all_with_one_message(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        outcome = rank["one_full_disk_stops_all"]
        for failing, message in zip((1, 0), outcome["errors"], strict=True):
            reason = "No space left on device" if number == failing else "another rank failed"
            assert f"cannot be written ({reason}); the last good checkpoint is step 1" in message
        assert outcome["left"] == ["step-00000001"]
        assert outcome["whole"] == [1]
        assert outcome["after"] == [1, 4]
