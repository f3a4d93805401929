"""A task on which PPO learns in seconds: a word game that a small random model plays, and a reward model that learned
its rule from comparisons. Needs torch and Transformers only, so that any PPO can be measured on it.

A response is up to 12 of 34 made-up words. The rule likes those with an o and dislikes those with an i. The reward
model is a BERT that reads letters, not words: it shares nothing with the policy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = ["".join(word) for word in itertools.product("bdgklmnprst", "aeio", "n")][:34]
MAX_NEW_TOKENS = 12
PROMPT_WORDS = 3
ALPHABET = " abdegiklmnoprst"
"""Of the reward model; 0 is its padding."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; 36 with padding and end."""
    ids = {token: index for index, token in enumerate(["<pad>", "<eos>", *WORDS])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def policy(seed: int) -> LlamaForCausalLM:
    """Hidden size 64, 2 layers, random."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def prompts(count: int, seed: int) -> list[str]:
    """All of PROMPT_WORDS words, so that a peer can tell where a response begins."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=PROMPT_WORDS)) for _ in range(count)]


def gold(response: str) -> float:
    """The rule: words with an o less words with an i, by the square root of the number of words."""
    count = len(response.split())
    return (response.count("o") - response.count("i")) / count**0.5 if count else 0.0


class RewardModel:
    """Letters -> score. `learn` fits it to comparisons by the rule (Bradley-Terry), as a reward model is fitted to
    people's."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(ALPHABET) + 1,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=4 * MAX_NEW_TOKENS,
            num_labels=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        )
        self.model = BertForSequenceClassification(config)
        self._draw = random.Random(seed)

    def learn(self, steps: int = 90, pairs: int = 48) -> float:
        """Share of fresh pairs that it orders as the rule does, at the end."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
        right = []
        for _ in range(steps):
            texts = [self._response() for _ in range(2 * pairs)]
            rule = torch.tensor([gold(text) for text in texts])
            margin = (self._logits(texts) * torch.tensor([1.0, -1.0]).repeat(pairs)).view(-1, 2).sum(1)
            wanted = (rule[0::2] - rule[1::2]).sign()
            loss = -(F.logsigmoid(margin * wanted) * wanted.abs()).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            right.append(float((margin * wanted > 0).float()[wanted != 0].mean()))
        self.model.eval()
        self._normalize()
        return sum(right[-10:]) / 10

    @torch.no_grad()
    def score(self, responses: Sequence[str]) -> list[float]:
        """Of mean 0 and spread 1 over responses like those that it learned from."""
        return self._logits(responses).tolist()

    @torch.no_grad()
    def _normalize(self) -> None:
        spread, mean = torch.std_mean(self._logits([self._response() for _ in range(256)]))
        head = self.model.classifier
        head.weight /= spread
        head.bias.sub_(mean).div_(spread)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def load(self, folder: Path) -> RewardModel:
        self.model = BertForSequenceClassification.from_pretrained(folder).eval()
        return self

    def _logits(self, responses: Sequence[str]) -> torch.Tensor:
        rows = [[ALPHABET.index(letter) + 1 for letter in text] or [1] for text in responses]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return self.model(input_ids=ids, attention_mask=(ids > 0).long()).logits.squeeze(1)

    def _response(self) -> str:
        """Of any length and mixture, so that it knows what a trained policy says too."""
        taste = [self._draw.random() ** 2 for _ in WORDS]
        return " ".join(self._draw.choices(WORDS, taste, k=self._draw.randint(1, MAX_NEW_TOKENS)))
