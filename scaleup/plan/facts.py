"""This module holds the facts of a model that the plan needs. The data plane computes them in a process of its own,
without loading weights (`python -m scaleup.describe.answer`), and hands them back as JSON."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Literal

from pydantic import BaseModel, ConfigDict

from scaleup.config.adapters import AdapterConfig, Quantization
from scaleup.config.data import ClassProblem, DataConfig
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.distill import EveryLayer
from scaleup.config.stages.prune import PruneSettings
from scaleup.records.labels import Targets


def is_reward_model(where: str) -> bool:
    """Tells whether a config key is that of a model which scores a policy's responses, in a group of its own or in the
    policy's processes: `reward.model` or `rewards.0.model`."""
    section, _, key = where.rpartition(".")
    return key == "model" and section.partition(".")[0] in ("reward", "rewards")


class Tensors(BaseModel):
    """Stands for all parameters of one shape. Models have few shapes, however many layers they have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, ...]
    count: int
    trainable: bool = True
    quantized: bool = False

    @property
    def elements(self) -> int:
        """Returns the number of elements of one of them."""
        return prod(self.shape)


Arithmetic = Literal["float32", "autocast", "low"]
"""Names what a pass computes in: float32 throughout; float32 weights with autocast; weights and all else in two
bytes."""


class MicroBatch(BaseModel):
    """Holds the most that a rank trains on at a time: so many rows of `max_length` tokens, or so many tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    tokens: int | None = None
    """Counts tokens in place of rows: padding included, and prompt and target together."""
    max_length: int
    packing: bool = False
    pairs: bool = False
    """Tells whether a row is two texts, of which one is preferred."""
    gradient_checkpointing: bool = False
    arithmetics: tuple[Arithmetic, ...] = ("float32",)
    """Names those that the run's strategies may use at its precision."""

    def shape(self, task: str) -> tuple[int, int]:
        """Returns the rows, and the tokens of each: of the prompt and of the target alike for an encoder-decoder that
        writes, of each text of a pair."""
        if self.tokens is None:
            return self.rows, self.max_length
        tokens = self.tokens // (2 if self.pairs or task == "seq2seq_lm" else 1)
        rows = max(1, tokens // self.max_length)
        return rows, max(self.max_length, tokens // rows)


class Footprint(BaseModel):
    """Holds the bytes that a micro-batch needs beside the weights, traced on the model itself without storage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arithmetic: Arithmetic
    forward: int
    """Counts the bytes alive when the forward pass ends: what was saved for the backward pass."""
    logits: int
    """Counts the bytes that the head and the loss have at most, beyond what there was before them."""
    moments: tuple[tuple[int, int], ...]
    """Holds the bytes (without gradients, gradients settled) at the fullest moments: the first has the most without
    gradients, the last the most gradients, those between are the fullest where gradients are held in part."""

    def most(self, held: float) -> int:
        """Returns the bytes at the fullest moment, if the share `held` of the settled gradients is counted."""
        return max(int(activations + held * gradients) for activations, gradients in self.moments)

    def after(self, settled: int, held: float) -> int:
        """Returns an upper bound of `most` once `settled` bytes of gradients are there: between two known moments, both
        amounts are interpolated linearly."""
        later = [moment for moment in self.moments if moment[1] >= settled]
        for (most, before), (least, behind) in pairwise(self.moments):
            if before < settled < behind:
                later.append((most + (least - most) * (settled - before) // (behind - before), settled))
        return max((int(activations + held * gradients) for activations, gradients in later), default=0)

    def grown(self, states: int, chunks: int) -> Footprint:
        """Returns the footprint with `states` bytes more throughout both passes, and `chunks` more while the loss is
        computed."""
        moments = tuple((most + states + chunks, gradients) for most, gradients in self.moments)
        update = {"forward": self.forward + states, "logits": self.logits + chunks, "moments": moments}
        return self.model_copy(update=update)


class Parts(BaseModel):
    """Holds which parts of a model can be cut, and what the model becomes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depths: tuple[int, ...]
    """Counts the layers of each stack."""
    intermediate_size: int
    num_key_value_heads: int
    head_dim: int
    fixed: dict[str, str]
    """Maps each setting that cannot be changed -> why."""
    widths: tuple[int, ...] = ()
    """Counts the inputs of the matrices of the layers that are left, each width once."""
    num_parameters: int | None = None
    """Counts them after the cut; None where it cannot be made."""
    refused: str | None = None
    """Says what Transformers has against the config of the cut model."""

    @property
    def sizes(self) -> dict[str, int]:
        """Returns the sizes before the cut, by the names of the settings for those after it."""
        sizes = {key: getattr(self, key) for key in ("intermediate_size", "num_key_value_heads", "head_dim")}
        return {"layers": min(self.depths), **sizes}


class Experts(BaseModel):
    """Holds how the layers of a mixture of experts route their tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_experts: int
    """Counts the experts of a layer."""
    num_experts_per_tok: int
    """Counts those that a token goes through."""
    num_parameters: int
    """Counts the parameters of all experts of all layers."""
    router_aux_loss_coef: float | None = None
    """Is what the loss that balances the router's load is multiplied by; None where the model has none."""

    @property
    def shown(self) -> str:
        return f"{self.num_experts_per_tok} of {self.num_experts} experts a layer"

    @property
    def num_idle_parameters(self) -> int:
        """Returns the number of parameters that a token does not go through."""
        return self.num_parameters * (self.num_experts - self.num_experts_per_tok) // self.num_experts


class ModelFacts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    location: str
    """Is the folder or hub name that workers load: package and built-in models have become folders by now."""
    task: Literal["causal_lm", "seq2seq_lm", "sequence_classification"]
    model_type: str
    """Is Transformers' own, e.g. llama, qwen2, gpt2, t5, bart."""
    architecture: str
    """Names the class, e.g. LlamaForCausalLM."""
    num_parameters: int
    """Counts each shared tensor once."""
    num_trainable_parameters: int
    tensors: tuple[Tensors, ...]
    """Groups the parameters by shape, each shared tensor counted once: what sharding with its padding comes to."""
    largest_block: int
    """Counts the elements of the largest part that FSDP2 gathers at once: a layer, the embeddings, or the head."""
    vocab_size: int
    """Counts the rows of the embeddings, with those of new tokens."""
    stored_vocab_size: int | None = None
    """Counts the rows that the files hold, where the model is to have more; None: as many."""
    new_token_ids: tuple[int, ...] = ()
    """Holds the ids of the config's new tokens, whose rows are to be learned."""
    hidden_size: int = 0
    """Is the width of the trunk's last states; 0 where the architecture does not say."""
    num_layers: int = 0
    """Counts the layers of the decoder, or of the only stack there is."""
    layers: dict[str, tuple[int, ...]] | None = None
    """Tells which of the layers at `location` the model has, numbered from 0, by the name of the stack; None: all."""
    pad_token: str | None
    eos_token: str | None
    """Is, as the pad token, what the tokenizer has before anything is filled in."""
    tokenizer_size: int
    """Counts the ids that the tokenizer can give; the model must have at least as many."""
    vocabulary: str = ""
    """Is a hash of which token has which id."""
    max_positions: int | None
    """Is the longest input, in tokens, that the position embeddings allow; None where there is no limit (T5's relative
    positions)."""
    num_virtual_tokens: int = 0
    """Counts those of an adapter that is a prompt or a prefix: they take positions beside those of a row."""
    labels: tuple[str, ...] = ()
    """Names the labels of a sequence classifier, in the order of its logits; none where its files have no head."""
    new_labels: tuple[str, ...] = ()
    """Names the labels that a head beside its files has, an adapter's or a new one; none where it has one score."""
    problem: ClassProblem | None = None
    """Tells what a sequence classifier's logits are; None where nothing does."""
    pooling: Literal["whole", "last", "eos"] | None = None
    """Tells which hidden states a sequence classifier reads its scores from: models/classifier.py."""
    has_chat_template: bool
    adapter: str | None = None
    """Is the folder of the adapter that goes on top of the weights, where the config's path names one."""
    tokenizer_location: str | None = None
    """Tells where the tokenizer lies, if not beside the weights."""

    attention_width: int = 0
    """Is the number of heads times their size, added up over the layers."""
    num_lookup_parameters: int = 0
    """Counts the parameters of embeddings that are only looked up in: no product uses them."""
    experts: Experts | None = None
    """Tells of the experts of a model that has them."""
    flaw: tuple[str, str] | None = None
    """Says what the files of its folder lack, and what to do; None where they are whole, or not here."""
    parts: Parts | None = None
    """Holds the parts of a model that is to be pruned."""
    footprints: tuple[Footprint, ...] = ()
    """Holds the footprint of the run's micro-batch in each arithmetic, where it trains."""
    untraced: str | None = None
    """Says why the model could not be traced, where it trains; None if it was."""

    @property
    def num_active_parameters(self) -> int:
        """Returns the number of parameters that a token goes through: without the other experts."""
        return self.num_parameters - (self.experts.num_idle_parameters if self.experts else 0)

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the names of a sequence classifier's labels, wherever its head is."""
        return self.labels or self.new_labels

    @property
    def targets(self) -> Targets:
        """Returns what the labels of rows stand for: of several labels, where nothing tells, one class a row."""
        return Targets(self.classes, self.problem or "single_label")

    @property
    def reads_labels(self) -> bool:
        """Returns whether labels of rows mean anything to the model: a reward model's one score has none."""
        return len(self.classes) > 1 or self.problem is not None

    @property
    def tokenizer_at(self) -> str:
        """Returns the folder of the tokenizer."""
        return self.tokenizer_location or self.location

    def footprint(self, arithmetic: Arithmetic) -> Footprint | None:
        return next((each for each in self.footprints if each.arithmetic == arithmetic), None)


class InContext(BaseModel):
    """Asks whether prompts have room behind their examples (`data.few_shot`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str | None
    """Names the rows that are asked; None: `prompts` are."""
    prompts: list[str] = []
    max_samples: int | None = None
    has_completions: bool = False
    """Tells whether rows have a completion, of which the loss is taken."""
    max_new_tokens: int = 0


class RowsRequest(BaseModel):
    """Asks what a model's tokenizer and its chat template make of the rows of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig
    splits: dict[str, Literal["completions", "prompts"]]
    """Maps a data split to what its rows hold."""
    max_rows: int | None = None
    """Is how many rows of a source are read at most; None: all."""
    tokens: dict[str, Literal["completions", "prompts"]] = {}
    """Maps a split whose rows the run has as tokens, which are made and kept then -> what is made of them."""
    pairs_template: str | None = None
    """Is the text that a reward model reads of a prompt and a response, where rows are preferences."""
    preferences: Literal["pairs", "unpaired"] | None = None
    """Tells what preferences rows are that a language model learns from: none, pairs, or single responses."""
    by_own_template: bool = False
    """Tells whether the model reads conversations by its own template, where it has one: what `data` names is another
    model's."""
    in_context: InContext | None = None


class ModelRequest(ModelConfig):
    """Asks for the facts of a config's model after what is done to it before it is trained."""

    adapter: AdapterConfig | None = None
    quantization: Quantization | None = None
    prune: PruneSettings | None = None
    layers: tuple[int, ...] | EveryLayer | None = None
    """Keeps these layers alone, numbered from 0."""
    new_labels: tuple[str, ...] = ()
    """Names the labels of the head that a classifier without one gets; none where it gets one score."""
    problem: ClassProblem | None = None
    """Tells what a classifier is trained for whose files do not say."""
    takes_encoders: bool = False
    """Tells whether an encoder without a head is taken too, as a classifier without labels."""
