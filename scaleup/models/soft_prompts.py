"""This module does for models with soft prompts and prefixes what PEFT does not: it counts their virtual tokens, saves
them and puts them before a batch.

A causal model with prompt tuning returns logits for its virtual tokens too, so labels move to the right. Virtual tokens
count against the model's positions. PEFT saves what the vectors are, and loads them for inference only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ADAPTER = "default"
"""Is the name that PEFT gives a model's only adapter."""


def num_virtual_tokens(model: Any) -> int:
    """Returns how many positions a model's adapter takes beside those of its tokens."""
    settings = getattr(model, "active_peft_config", None)
    return settings.num_virtual_tokens if settings is not None and settings.is_prompt_learning else 0


def num_prepended(model: Any) -> int:
    """Returns how many columns a model's logits have before those of its tokens. An encoder's prompt has none."""
    settings = getattr(model, "active_peft_config", None)
    if settings is None or (settings.peft_type, settings.task_type) != ("PROMPT_TUNING", "CAUSAL_LM"):
        return 0
    return settings.num_virtual_tokens


def make_prompt_trainable(model: Any) -> None:
    """Turns on the gradients of a soft prompt: PEFT loads one for inference only."""
    model.active_peft_config.inference_mode = False
    model.prompt_encoder.requires_grad_(True)


def save_prompt(model: Any, folder: Path, trained: dict[str, torch.Tensor]) -> None:
    """Writes a prompt as PEFT's save_pretrained does, from the trained parameters given: those in the model may be
    shards."""
    settings = model.active_peft_config
    start = f"prompt_encoder.{ADAPTER}."
    weights = {name.removeprefix(start): weight for name, weight in trained.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"prompt_embeddings": _prompt_vectors(settings, weights)}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    settings.inference_mode = False


@torch.no_grad()
def _prompt_vectors(settings: Any, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the vectors themselves (virtual tokens, width); of a projected prefix, what its network makes of them."""
    from peft import PrefixEncoder

    if not getattr(settings, "prefix_projection", False):
        return weights["embedding.weight"]
    encoder = PrefixEncoder(settings)
    encoder.load_state_dict(weights)
    return encoder(torch.arange(settings.num_virtual_tokens)).contiguous()


def prefix_shape(config: Any) -> dict[str, int]:
    """Returns the layers, heads and their width together, of the decoder of an encoder-decoder model. PEFT takes the
    encoder's, and for the width the hidden size, which is not T5's in some sizes."""
    if not config.is_encoder_decoder:
        return {}
    layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", config.num_hidden_layers)
    heads = getattr(config, "decoder_attention_heads", config.num_attention_heads)
    size = getattr(config, "d_kv", None) or config.hidden_size // heads
    return {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * size}


def behind_prompt(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns embeddings (B, P + S, H) and mask (B, P + S) of token ids (B, S) padded on the left, the soft prompt of P
    vectors right before each row's first token. PEFT puts it before the padding, which moves it away from the tokens by
    as much."""
    tokens = model.get_input_embeddings()(ids)
    prompts = model.get_prompt(batch_size=len(ids)).to(tokens.dtype)
    embeddings = torch.cat([prompts, tokens], dim=1)
    mask = torch.cat([mask.new_ones(prompts.shape[:2]), mask], dim=1)
    order = mask.argsort(dim=1, stable=True)  # padding first, the rest as it was
    return embeddings.gather(1, order.unsqueeze(2).expand_as(embeddings)), mask.gather(1, order)
