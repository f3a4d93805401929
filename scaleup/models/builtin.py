"""This module writes small random models with byte-level tokenizers, built offline, by their names: what tests,
examples and dry runs train on.

They have the shape of the real ones (grouped-query attention, tied or untied heads, chat template, the special tokens
of T5, BART and BERT) at a size where a training step takes milliseconds. Dropout is 0 everywhere, so that one
trajectory can be compared across splits of the same batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SEED = 20240607
MAX_POSITIONS = 512
CAUSAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # pad, bos, eos; Qwen2Tokenizer insists on the first
T5_TOKENS = ("<pad>", "</s>")  # pad, eos: T5 has no bos
BART_TOKENS = ("<s>", "<pad>", "</s>")  # bos, pad, eos
BERT_TOKENS = ("[PAD]", "[CLS]", "[SEP]")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _decoder_shape() -> dict[str, Any]:
    return {
        "vocab_size": len(CAUSAL_TOKENS) + 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "attention_dropout": 0.0,
        **_causal_ids(),
    }


def _causal_ids() -> dict[str, int]:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _llama() -> PreTrainedConfig:
    from transformers import LlamaConfig

    return LlamaConfig(**_decoder_shape(), tie_word_embeddings=False)


def _qwen2() -> PreTrainedConfig:
    from transformers import Qwen2Config

    return Qwen2Config(**_decoder_shape(), tie_word_embeddings=True)


def _mixtral() -> PreTrainedConfig:
    from transformers import MixtralConfig

    return MixtralConfig(**_decoder_shape(), num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.02)


def _gpt2() -> PreTrainedConfig:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=len(CAUSAL_TOKENS) + 256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=MAX_POSITIONS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        **_causal_ids(),
    )


def _t5() -> PreTrainedConfig:
    from transformers import T5Config

    return T5Config(
        vocab_size=len(T5_TOKENS) + 256,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def _bart() -> PreTrainedConfig:
    from transformers import BartConfig

    return BartConfig(
        vocab_size=len(BART_TOKENS) + 256,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=MAX_POSITIONS,
        dropout=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )


def _bert() -> PreTrainedConfig:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(BERT_TOKENS) + 256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )


def _bert_classifier() -> PreTrainedConfig:
    config = _bert()
    config.id2label = {0: "negative", 1: "positive"}
    config.label2id = {"negative": 0, "positive": 1}
    return config


def _hate_classifier() -> PreTrainedConfig:
    """Returns a config with weights large enough that texts are told apart, by no rule that anybody knows."""
    config = _bert()
    config.initializer_range = 0.2
    config.id2label = {0: "nothate", 1: "hate"}
    config.label2id = {"nothate": 0, "hate": 1}
    return config


BUILTIN: dict[str, Callable[[], PreTrainedConfig]] = {
    "tiny-llama": _llama,
    "tiny-qwen2": _qwen2,
    "tiny-mixtral": _mixtral,
    "tiny-gpt2": _gpt2,
    "tiny-t5": _t5,
    "tiny-bart": _bart,
    "tiny-bert": _bert,
    "tiny-bert-classifier": _bert_classifier,
    "tiny-hate-classifier": _hate_classifier,
}


def build(name: str, folder: Path) -> None:
    """Writes the built-in model `name` to `folder` in Hugging Face's layout: the same bytes every time.

    The caller's random state stays as it was. Raises KeyError for a name that is not in `BUILTIN`."""
    config = BUILTIN[name]()
    seeded(config, _auto_class(config, name.endswith("-classifier")), is_untied=True).save_pretrained(folder)
    _tokenizer(config.model_type).save_pretrained(folder)
    if config.model_type == "t5":
        say_untied(folder / "config.json")


def _auto_class(config: PreTrainedConfig, is_classifier: bool) -> Any:
    import transformers

    if config.model_type == "bert":
        return transformers.AutoModelForSequenceClassification if is_classifier else transformers.AutoModel
    return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM


def seeded(config: PreTrainedConfig, auto: Any, is_untied: bool) -> PreTrainedModel:
    """Returns a model of Transformers' class `auto` on the CPU, whose random weights follow from its config alone. If
    `is_untied`, T5 has a head of its own. The caller's random state stays as it was."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would reseed the accelerators too
        model = auto.from_config(config, dtype=torch.float32)
        if config.model_type == "t5" and is_untied:
            # transformers 5 ties T5's head whatever its config says, until it reads files with two different tensors.
            head = torch.randn_like(model.shared.weight) * config.d_model**-0.5
            model.lm_head.weight = torch.nn.Parameter(head)
    return model


def say_untied(path: Path) -> None:
    """Sets `tie_word_embeddings` to false in a config.json. FLAN-T5's own has that; transformers' save_pretrained turns
    it into true."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tokenizer(model_type: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token a UTF-8 byte, after the special ones; nothing is ever unknown, so there is no
    unk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"t5": T5_TOKENS, "bart": BART_TOKENS, "bert": BERT_TOKENS}.get(model_type, CAUSAL_TOKENS)
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if model_type == "t5":
        names = {"pad_token": "<pad>", "eos_token": "</s>"}
        single, pair = "$A </s>", "$A </s> $B </s>"
    elif model_type == "bart":
        names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    elif model_type == "bert":
        names = dict(zip(("pad_token", "cls_token", "sep_token"), BERT_TOKENS, strict=True))
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"
    else:
        names = dict(zip(("pad_token", "bos_token", "eos_token"), CAUSAL_TOKENS, strict=True))
        single = pair = ""
    if single:
        added = [(token, ids[token]) for token in special if token in single]
        backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=added)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=MAX_POSITIONS, clean_up_tokenization_spaces=False, **names
    )
    if not single:
        tokenizer.chat_template = CHATML
    return tokenizer
