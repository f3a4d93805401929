"""What the parts of an attempt make together, and whether the run is started again."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from scaleup.artifacts.checkpoints import checkpoint_folder, write_listing
from scaleup.artifacts.files import folder_aside, write_json
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.launcher.ending import (
    Ending,
    Part,
    ending_of,
    first_failure,
    group_ended,
    killed_worker,
    may_restart,
    restart_delay,
    restart_line,
    verdict,
)
from tests.unit.launcher.plans import local_of

WELL = Part()
FAILED = Part("group policy ended with exit code 1")
KILLED = Part("group policy ended with exit code 1", "policy-rank1 was killed by signal 9")
SIGNALLED = Part("group policy ended with exit code 1", signalled=True)


def record(attempt: Attempt, error: str, *problems: str) -> None:
    found = [{"where": "data", "what": what, "remedy": ""} for what in problems]
    known: dict[str, Any] = {"rank": "policy-rank0", "time": 1.0, "traceback": "Traceback: here"}
    attempt.record_error("policy-rank0", {**known, "error": error, "problems": found})


class TestEnding:
    def test_all_parts_went_well(self, run: RunFolder) -> None:
        assert ending_of(run, run.new_attempt(), [WELL, WELL]) == Ending("finished")

    def test_a_death_after_the_end_changes_nothing(self, run: RunFolder) -> None:
        run.manifest_file.touch()
        assert ending_of(run, run.new_attempt(), [WELL, KILLED]) == Ending("finished")

    def test_a_kill_comes_before_what_survivors_felt(self, run: RunFolder) -> None:
        record(attempt := run.new_attempt(), "connection closed by peer")
        assert ending_of(run, attempt, [FAILED, KILLED]) == Ending("failed", "policy-rank1 was killed by signal 9")

    def test_an_error_is_named_by_its_first_line(self, run: RunFolder) -> None:
        record(attempt := run.new_attempt(), "out of memory\nTried to allocate")
        assert ending_of(run, attempt, [FAILED]) == Ending("failed", "policy-rank0 failed: out of memory")

    def test_a_death_without_a_word(self, run: RunFolder) -> None:
        assert ending_of(run, run.new_attempt(), [WELL, FAILED]) == Ending("failed", FAILED.failed)

    def test_a_disk_that_takes_nothing_is_named(self, run: RunFolder) -> None:
        """The worker could not leave its error there either. To start again would not help."""
        record(attempt := run.new_attempt(), "connection closed by peer")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            ending = ending_of(run, attempt, [FAILED])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert ending == Ending("failed", f"nothing can be written to {run.path}: File too large", final=True)
        assert ending_of(run, attempt, [FAILED]).what == "policy-rank0 failed: connection closed by peer"
        assert not list(run.path.glob(".probe*"))

    def test_a_users_mistake_on_any_node(self, run: RunFolder) -> None:
        record(attempt := run.new_attempt(), "", "is odd")
        assert ending_of(run, attempt, [KILLED, FAILED]).kind == "refused"

    def test_a_signal_to_any_node(self, run: RunFolder) -> None:
        assert ending_of(run, run.new_attempt(), [FAILED, SIGNALLED]) == Ending("stopped")
        run.resumable_file.touch()
        assert ending_of(run, run.new_attempt(), [WELL, Part(signalled=True)]) == Ending("stopped")

    def test_an_error_after_a_signal_is_final(self, run: RunFolder) -> None:
        record(attempt := run.new_attempt(), "a bug")
        assert ending_of(run, attempt, [SIGNALLED]) == Ending("failed", "policy-rank0 failed: a bug", final=True)

    def test_what_saved_because_another_died_is_no_stop(self, run: RunFolder) -> None:
        run.resumable_file.touch()
        assert ending_of(run, run.new_attempt(), [FAILED]).kind == "failed"
        assert ending_of(run, run.new_attempt(), [WELL]).kind == "stopped"


class TestRestart:
    @pytest.mark.parametrize(
        ("ending", "restarts", "most", "expected"),
        [
            (Ending("failed", "x"), 0, 1, True),
            (Ending("failed", "x"), 2, 3, True),
            (Ending("failed", "x"), 0, 0, False),
            (Ending("failed", "x"), 3, 3, False),
            (Ending("failed", "x", final=True), 0, 3, False),
            (Ending("refused"), 0, 3, False),
            (Ending("stopped"), 0, 3, False),
            (Ending("finished"), 0, 3, False),
        ],
    )
    def test_decision(self, ending: Ending, restarts: int, most: int, expected: bool) -> None:
        assert may_restart(ending, restarts, most) is expected

    def test_delays_double_up_to_a_limit(self) -> None:
        assert [restart_delay(restart) for restart in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
        assert restart_delay(10**9) == 30

    def test_line(self, run: RunFolder) -> None:
        ending = Ending("failed", "policy-rank1 was killed by signal 9")
        assert restart_line(run, ending, 1, 3) == f"{ending.what}; restart 1 of 3 from the start"
        with folder_aside(checkpoint_folder(run.checkpoints, 6)) as aside:
            write_listing(aside, 6)
        assert restart_line(run, ending, 2, 3) == f"{ending.what}; restart 2 of 3 from step 6"

    def test_the_verdict_counts_them(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        record(attempt := run.new_attempt(), "connection closed by peer")
        for restarts, shown in ((0, []), (1, ["  after 1 restart"]), (3, ["  after 3 restarts"])):
            assert verdict(run, attempt, Ending("failed", KILLED.killed), restarts) == 1
            first, *others = capsys.readouterr().err.splitlines()
            assert first == "error: policy-rank1 was killed by signal 9"
            assert others[:-2] == shown


FAILURE = """[0]:
  time      : 2026-11-22_02:49:{second:02d}
  host      : localhost
  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: 77)  (SIGKILL)
  error_file: <N/A>
"""


class TestKilledWorker:
    @staticmethod
    def found(run: RunFolder, log: str) -> str:
        attempt = run.new_attempt()
        attempt.launcher_log("policy", 1).write_text(log)
        local = local_of(run, 1)
        assert killed_worker(attempt, "policy", 0, local) == "", "that of another node"
        return killed_worker(attempt, "policy", 1, local)

    def test_the_one_that_the_launcher_names(self, run: RunFolder) -> None:
        """In the same second a survivor may have failed, too."""
        log = FAILURE.format(second=3, rank=2, code=1) + FAILURE.format(second=3, rank=3, code=-9)
        assert self.found(run, log) == "policy-rank3 was killed by signal 9"

    def test_not_one_that_torchrun_killed_because_another_failed(self, run: RunFolder) -> None:
        assert (
            self.found(run, FAILURE.format(second=33, rank=2, code=-9) + FAILURE.format(second=3, rank=3, code=1)) == ""
        )

    def test_one_whose_launcher_had_no_time_for_its_table(self, run: RunFolder) -> None:
        """Two hosts may have a process of the same number: each looks into its own folder."""
        attempt, local = run.new_attempt(), local_of(run, 1)
        attempt.launcher_log("policy", 1).write_text(
            "E1122] failed (exitcode: -9) local_rank: 0 (pid: 77) of binary: x"
        )
        assert killed_worker(attempt, "policy", 1, local) == "process 77 of node 1 was killed by signal 9"
        write_json(local.heartbeats / "policy-rank3.json", {"pid": 77})
        assert killed_worker(attempt, "policy", 1, local) == "policy-rank3 was killed by signal 9"

    def test_a_single_one(self, run: RunFolder) -> None:
        log = "CalledProcessError: Command ... died with <Signals.SIGKILL: 9>.\n"
        assert self.found(run, log) == "policy-rank0 was killed by signal 9"

    @pytest.mark.parametrize("code", [1, -15, -6])
    def test_nobody(self, run: RunFolder, code: int) -> None:
        """Who was told to end, or gave up, did so because of something else."""
        assert self.found(run, FAILURE.format(second=3, rank=2, code=code)) == ""
        assert self.found(run, "Traceback") == ""


def raised(error: str, prefix: str = "") -> str:
    lines = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "    f()", "    ^^^", error]
    return "".join(f"{prefix}{line}\n" for line in lines)


OF_TORCHRUN = raised("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ")
CHAIN = f"\nDuring handling of the above exception, another exception occurred:\n\n{raised('OSError: no network')}"


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("all is well\n", ""),
        ("W1128 a warning\n" + raised("ValueError: invalid literal: '4,2'"), "ValueError: invalid literal: '4,2'"),
        (raised("ImportError: libx.so", "[rank1]: ") + OF_TORCHRUN, "ImportError: libx.so"),
        (raised("KeyError: 1") + CHAIN + OF_TORCHRUN, "OSError: no network"),
        (raised("KeyboardInterrupt"), "KeyboardInterrupt"),
        (OF_TORCHRUN, ""),
        ("/usr/bin/python3.11: No module named scaleup.worker\n" + OF_TORCHRUN, "No module named scaleup.worker"),
        ("Fatal Python error: Segmentation fault\n\nCurrent thread\n", "Segmentation fault"),
        (raised("ValueError: " + "x" * 1000), "ValueError: " + "x" * 288),
        ("Traceback (most recent call last):\n", ""),
    ],
)
def test_the_first_failure_of_a_log(log: str, why: str) -> None:
    assert first_failure(log) == why


def test_a_group_that_did_not_come_up_says_why(run: RunFolder) -> None:
    attempt = run.new_attempt()
    assert group_ended(attempt, "policy", 0, 1) == "group policy ended with exit code 1"
    attempt.launcher_log("policy", 0).write_text(raised("OSError: no"))
    assert group_ended(attempt, "policy", 0, 1) == "group policy ended with exit code 1: OSError: no (policy-node0.log)"
