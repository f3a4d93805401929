"""The cluster section's values: what is read, and what is refused in words that help."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from scaleup.config.cluster import ClusterConfig, seconds_of


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5_400),
        ("1:30", 90),
        ("12:30:00", 45_000),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("1-00:00:01", 86_401),
    ],
)
def test_times_are_slurms(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds
    assert ClusterConfig(time=time).time_seconds == seconds


@pytest.mark.parametrize("time", ["", "soon", "1:2:3:4", "-5", "1.5", "1-1-1", "0", "00:00:00", " 90"])
def test_others_are_refused(time: str) -> None:
    with pytest.raises(ValueError, match=r'write e\.g\. "1-12:00:00"'):
        seconds_of(time)


@pytest.mark.parametrize("time", [45_000, 90, 1.5])
def test_a_number_may_be_a_time_that_yaml_misread(time: Any) -> None:
    with pytest.raises(ValidationError, match="put the time in quotes"):
        ClusterConfig(time=time)


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"slurm": {"sbatch": ["#SBATCH --exclusive"]}}, "is no option of sbatch"),
        ({"slurm": {"sbatch": ["--exclusive\n--nodes=9"]}}, "must be one line"),
        ({"slurm": {"sbatch": ["--nodes=9"]}}, "is decided by scaleup: use cluster.nodes"),
        ({"slurm": {"sbatch": ["-N 9"]}}, "is decided by scaleup: use cluster.nodes"),
        ({"slurm": {"sbatch": ["--array=0-3"]}}, "use --sweep"),
        ({"slurm": {"partition": "a b"}}, "one word without quotes"),
        ({"slurm": {"partition": "a#b"}}, "one word without quotes"),
        ({"memory": "64GB"}, "e.g. 64G"),
        ({"memory": "0G"}, "e.g. 64G"),
        ({"environment": {"A-B": "x"}}, "a variable's name"),
        ({"environment": {"A": "x\0"}}, "holds a null character"),
        ({"environment": {"A": True}}, "should be a valid string"),
        ({"setup": ["a\nb"]}, "must be one line"),
        ({"container": {"image": "x", "mounts": ["relative:/x"]}}, "an absolute path of the host"),
        ({"container": {"image": "x", "mounts": ["/a,/b"]}}, "an absolute path of the host"),
        ({"kubernetes": {"volume_claim": "Not_A_Label"}}, "lower-case letters"),
        ({"kubernetes": {"volume_claim": "x", "mount_path": ""}}, "at least 1 character"),
        ({"kubernetes": {"volume_claim": "my..claim"}}, "beside each '.'"),
        ({"kubernetes": {"volume_claim": "x", "namespace": "a.b"}}, "lower-case letters, digits and '-'"),
        ({"kubernetes": {"volume_claim": "x", "labels": {"x/…": "y"}}}, "the key of a label"),
        ({"kubernetes": {"volume_claim": "x", "labels": {"x": "other thing!"}}}, "the value of a label"),
        ({"kubernetes": {"volume_claim": "x", "node_selector": {"bad key": "v"}}}, "the key of a label"),
        ({"gpus_per_node": -1}, "greater than or equal to 0"),
    ],
)
def test_what_no_scheduler_takes_is_refused(section: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        ClusterConfig.model_validate(section)


def test_numbers_may_be_values_of_variables() -> None:
    assert ClusterConfig.model_validate({"environment": {"THREADS": 4, "LINES": "a\nb"}}).environment == {
        "THREADS": "4",
        "LINES": "a\nb",
    }


def test_raw_options_pass() -> None:
    options = ["--mail-type=END", "--exclusive", "-C a100", "--gpu-bind=none"]
    assert ClusterConfig.model_validate({"slurm": {"sbatch": options}}).slurm.sbatch == options
