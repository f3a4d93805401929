"""What torch says of the machine that the tests run on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scaleup.distributed.deepspeed_ops import ops_folder
from scaleup.plan.torch_facts import ask_torch


@pytest.mark.slow
def test_the_process_answers_with_what_torch_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = ops_folder() / "deepspeed_shm_comm" / "built"
    built.parent.mkdir(parents=True)
    built.touch()
    facts = ask_torch()
    assert (facts.version, facts.cuda) == (torch.__version__, torch.version.cuda)
    assert "gloo" in facts.backends and facts.cpu_bf16 is not None and facts.cpu_bf16 > 0
    assert len(facts.devices) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert facts.ops_folder == str(ops_folder()) and facts.ops_built == ("deepspeed_shm_comm",)


def test_a_torch_that_cannot_be_imported_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    code = f"import sys; sys.path[:0] = {sys.path!r}; from scaleup.plan.torch_facts import ask_torch; ask_torch()"
    path = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=path, timeout=120
    )
    assert "libcudart.so.12: cannot open shared object file" in done.stderr.strip().splitlines()[-1]
    assert "RuntimeError" in done.stderr
