"""A finished run or a model goes in; a conversation with it on this terminal comes out, from one process of the data
plane on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scaleup.artifacts.files import write_json
from scaleup.children import python_environment
from scaleup.plan.derive import chat_config
from scaleup.plan.resolve import resolve


def chat(target: str, overrides: Sequence[str]) -> int:
    """Check what is asked, and talk until the user ends it. Return the exit code of the process that answers.

    Raises ScaleupError for the user's mistakes."""
    config, plan = resolve(chat_config(target, overrides), check_run_folder=False, peaks=False)
    asked = {"config": config.model_dump(mode="json"), "facts": plan.model.model_dump(mode="json")}
    with tempfile.TemporaryDirectory(prefix="scaleup-chat-") as folder:
        file = Path(folder) / "chat.json"
        write_json(file, {**asked, "device": plan.groups[0].device})
        command = [sys.executable, "-m", "scaleup.models.chat", str(file)]
        process = subprocess.Popen(command, env=python_environment(plan.groups[0].threads_per_process))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the answer's
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, before)
