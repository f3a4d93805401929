"""What the data plane would say of a model that is nowhere: for tests of the control plane."""

from __future__ import annotations

from typing import Any

from scaleup.plan.facts import ModelFacts, Tensors

FACTS = ModelFacts(
    location="/models/tiny",
    task="causal_lm",
    model_type="llama",
    architecture="LlamaForCausalLM",
    num_parameters=1000,
    num_trainable_parameters=900,
    tensors=(
        Tensors(shape=(40, 20), count=1),
        Tensors(shape=(10, 10), count=1, trainable=False),
        Tensors(shape=(50,), count=2),
    ),
    largest_block=800,
    vocab_size=259,
    tokenizer_size=259,
    max_positions=512,
    pad_token="<pad>",
    eos_token="</s>",
    has_chat_template=True,
)


def facts_of(**changes: Any) -> ModelFacts:
    """FACTS with other values."""
    return FACTS.model_copy(update=changes)
