"""Tokenizers of every family, trained offline on a few words, each once: they differ in where they put spaces, what
their tokens span, what they add to a text and what they rewrite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
SPECIAL = (UNK, BOS, EOS)
WORDS = str.split(
    "The cat eats fish, mostly. Name animal number 1. And its food? Review: a film; Sentiment: very positive "
    "quite negative user assistant system <|user|> <|assistant|> is it:good is it:bad label: good a b ab ba"
)
CORPUS = [" ".join(WORDS), *WORDS, "is it:good", "user\n", "\n\n"] * 10
ALPHABET = sorted({*map(chr, range(32, 127)), "\n"})
TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TIGHT = (  # without anything between an answer and the token before it
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def wrapped(backend: Tokenizer, adds: str = "bos", template: str = TEMPLATE, **options: Any) -> Any:
    """Returns the backend as Transformers has it, adding to every text "bos", "eos", "bos eos" or nothing."""
    if adds:
        around = {"bos": f"{BOS} $A", "eos": f"$A {EOS}", "bos eos": f"{BOS} $A {EOS}"}[adds]
        ids = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
        own, template_of = backend.post_processor, processors.TemplateProcessing(single=around, special_tokens=ids)
        backend.post_processor = processors.Sequence([own, template_of]) if own else template_of
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "clean_up_tokenization_spaces": False}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **options})
    tokenizer.chat_template = template
    return tokenizer


def bpe(alphabet: list[str], size: int = 420, **options: Any) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False, **options
    )


def byte_level(add_prefix_space: bool = False, use_regex: bool = True, trim_offsets: bool = False, **options: Any):
    """GPT-2, Qwen, Llama 3; without a regex, tokens span words."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = options.pop("normalizer", None)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(CORPUS, bpe(pre_tokenizers.ByteLevel.alphabet()))
    return wrapped(backend, **options)


def with_bytes(trained: Tokenizer) -> Tokenizer:
    """Returns a BPE that spells what it does not know in bytes."""
    import json

    made = json.loads(trained.to_str())
    vocab = made["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    made["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(made))


SPACES = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def metaspace(prepend: str = "first", split: bool = False, crossing: bool = False, **options: Any):
    """Llama 2, Mistral, TinyLlama: a space is a character of the word behind it, and the first word gets one."""
    backend = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=not crossing)
    backend.train_from_iterator(CORPUS, bpe([*ALPHABET, "▁"], 450))
    backend = with_bytes(backend)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=split)
    backend.decoder = SPACES if prepend != "never" else decoders.Sequence([decoders.Replace("▁", " "), *FUSED])
    return wrapped(backend, **options)


FUSED = [decoders.ByteFallback(), decoders.Fuse()]


def legacy(**options: Any):
    """Llama 2's and Phi-3's files before Metaspace: a normalizer puts the spaces, before each piece of text."""
    backend = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.train_from_iterator(CORPUS, bpe([*ALPHABET, "▁"], 450))
    backend = with_bytes(backend)
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = SPACES
    tokenizer = wrapped(backend, **options)
    return tokenizer


def phi(**options: Any):
    """Phi-3: markers that are special, and swallow the space behind them."""
    tokenizer = legacy(**options)
    markers = [AddedToken(f"<|{name}|>", special=True, rstrip=True, normalized=False) for name in ROLES]
    tokenizer.add_tokens(markers, special_tokens=True)
    return tokenizer


ROLES = ("system", "user", "assistant")


def unigram(**options: Any):
    """T5, XLNet, mBART."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(SPECIAL), unk_token=UNK, initial_alphabet=ALPHABET, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrapped(backend, **options)


def word_piece(**options: Any):
    """BERT: lower case, no accents, no spaces."""
    backend = Tokenizer(models.WordPiece(unk_token=UNK))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = [UNK, BOS, EOS, "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=ALPHABET, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return wrapped(backend, adds="", cls_token="[CLS]", sep_token="[SEP]", **options)


def with_added(make: Callable[..., Any], special: bool = False, **how: bool) -> Any:
    """Returns a tokenizer whose chats have markers that are tokens."""
    tokenizer = make()
    markers = [AddedToken(f"<|{name}|>", special=special, **how) for name in ROLES]
    tokenizer.add_tokens(markers, special_tokens=special)
    return tokenizer


def slow() -> Any:
    """ByT5: in Python, without offsets."""
    tokenizer = ByT5Tokenizer(extra_ids=0, bos_token=BOS)
    tokenizer.add_tokens([AddedToken(BOS, special=True)], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


FAMILIES: Mapping[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-level, eos": partial(byte_level, adds="eos"),
    "byte-level, bos and eos": partial(byte_level, adds="bos eos"),
    "byte-level, nothing added": partial(byte_level, adds=""),
    "byte-level, prefix space": partial(byte_level, add_prefix_space=True),
    "byte-level, trimmed offsets": partial(byte_level, add_prefix_space=True, trim_offsets=True),
    "byte-level, across words": partial(byte_level, use_regex=False),
    "byte-level, prefix space, across words": partial(byte_level, add_prefix_space=True, use_regex=False),
    "byte-level, NFKC": partial(byte_level, normalizer=normalizers.NFKC()),
    "metaspace first": metaspace,
    "metaspace first, split": partial(metaspace, split=True),
    "metaspace first, across words": partial(metaspace, crossing=True),
    "metaspace first, bos and eos": partial(metaspace, adds="bos eos"),
    "metaspace first, tight": partial(metaspace, template=TIGHT),
    "metaspace always": partial(metaspace, "always"),
    "metaspace always, split": partial(metaspace, "always", split=True),
    "metaspace always, tight": partial(metaspace, "always", template=TIGHT),
    "metaspace never": partial(metaspace, "never"),
    "metaspace never, split": partial(metaspace, "never", split=True),
    "legacy": legacy,
    "legacy, tight": partial(legacy, template=TIGHT),
    "phi": phi,
    "unigram": partial(unigram, adds="eos"),
    "unigram, nothing added": partial(unigram, adds=""),
    "word piece": word_piece,
    "markers": partial(with_added, byte_level),
    "markers, lstrip": partial(with_added, byte_level, lstrip=True),
    "markers, rstrip": partial(with_added, byte_level, rstrip=True),
    "markers, single word": partial(with_added, byte_level, single_word=True),
    "markers, both strip, metaspace": partial(with_added, metaspace, lstrip=True, rstrip=True),
    "special markers, metaspace": partial(with_added, metaspace, special=True),
    "special markers, metaspace always": partial(with_added, partial(metaspace, "always"), special=True),
    "special markers, metaspace always, tight": partial(
        with_added, partial(metaspace, "always", template=TIGHT), special=True
    ),
    "slow": slow,
}


@cache
def of_family(name: str) -> Any:
    """Returns the tokenizer of that name. Who changes it takes a copy."""
    return FAMILIES[name]()
