"""The engine's environment has vLLM, and of ours nothing but this package: what the engine imports must be there."""

import subprocess
import sys

LACKING = ("transformers", "accelerate", "peft", "datasets", "yaml", "pydantic", "rich", "filelock", "psutil", "trl")


def test_the_engine_imports_torch_numpy_and_the_standard_library_alone() -> None:
    code = (
        "import sys; import scaleup.generator.engine, scaleup.generator.vllm_drawer; "
        f"print(*[name for name in {LACKING!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
