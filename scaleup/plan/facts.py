"""What the plan knows of a model. The data plane computes it in a process of its own (`python -m scaleup.models.facts`)
on the meta device, without loading weights, and hands it back as JSON."""

from __future__ import annotations

from math import prod
from typing import Literal

from pydantic import BaseModel, ConfigDict

from scaleup.config.adapters import AdapterConfig, Quantization
from scaleup.config.schema import ModelConfig


class Tensors(BaseModel):
    """Parameters of one shape. Models have few shapes, however many layers they have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, ...]
    count: int
    trainable: bool = True
    quantized: bool = False

    @property
    def elements(self) -> int:
        """Of one of them."""
        return prod(self.shape)


class ModelFacts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    location: str
    """The folder or hub name that workers load: package and built-in models have become folders by now."""
    task: Literal["causal_lm", "seq2seq_lm"]
    model_type: str
    """Transformers' own, e.g. llama, qwen2, gpt2, t5, bart."""
    architecture: str
    """The class, e.g. LlamaForCausalLM."""
    num_parameters: int
    """Each shared tensor counted once."""
    num_trainable_parameters: int
    tensors: tuple[Tensors, ...]
    """The parameters by shape, each shared tensor counted once: what sharding with its padding comes to."""
    largest_block: int
    """Elements of the largest part that FSDP2 gathers at once: a layer, the embeddings, or the head."""
    vocab_size: int
    tokenizer_size: int
    """Ids the tokenizer can give; the model must have at least as many."""
    max_positions: int | None
    """The longest input the position embeddings allow; None where there is no limit (T5's relative positions)."""
    has_chat_template: bool
    adapter: str | None = None
    """The folder of the adapter that goes on top of the weights, where the config's path names one."""
    tokenizer_location: str | None = None
    """Where the tokenizer lies, if not beside the weights."""


class AskedModel(ModelConfig):
    """A model, and what is made of it before it is trained."""

    adapter: AdapterConfig | None = None
    quantization: Quantization | None = None
