from pathlib import Path
from typing import Any

import pytest

NAMES = ("tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-t5", "tiny-bart")


@pytest.fixture
def load(own_cache: None) -> Any:
    """A built-in model and its tokenizer by name."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    from scaleup.models.sources import materialize

    def loaded(name: str) -> tuple[Any, Any]:
        folder = Path(materialize(f"builtin:{name}", "model.path"))
        auto = AutoModelForSeq2SeqLM if name in ("tiny-t5", "tiny-bart") else AutoModelForCausalLM
        return auto.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    return loaded
