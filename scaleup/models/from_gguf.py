"""This module dequantizes a GGUF file to a Hugging Face folder in float32. It is slow: `sources` calls it once a
package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleup.errors import ScaleupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GPT2_SPLITS = {"gpt-2"}
"""Lists GGUF's names of splits that are GPT-2's, which is what transformers does with a name it does not know."""
DIGIT_SPLITS = {"smollm"}
"""Lists names of splits that take every digit alone and then do GPT-2's. transformers 5.23 does not know them."""


def convert(file: Path, folder: Path, where: str) -> None:
    """Writes the GGUF `file` to `folder`: weights in float32, tokenizer and chat template.

    Raises ScaleupError at `where` if its tokenizer cannot be rebuilt exactly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    split_like(tokenizer, _split_name(file), where)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def split_like(tokenizer: PreTrainedTokenizerBase, split: str | None, where: str) -> None:
    """Makes `tokenizer` cut text into words as GGUF's pre-tokenizer `split` does. None (no byte-level BPE) is left.

    Raises ScaleupError at `where` for a name that neither transformers nor this module knows: some texts would get
    other tokens than the model learned."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if split in DIGIT_SPLITS:
        words = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = words
    elif split is not None and split not in GPT2_SPLITS and split not in GGUF_PRE_TOKENIZER_SPLITS:
        what = f"its GGUF splits text like {split!r}, which cannot be rebuilt exactly"
        raise ScaleupError.of(where, what, "use this model's Hugging Face folder instead")


def _split_name(file: Path) -> str | None:
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    if fields["tokenizer.ggml.model"].contents() != "gpt2":
        return None
    return fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else "default"
