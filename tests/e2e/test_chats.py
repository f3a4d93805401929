"""Stages on conversations, from the command line: what each reads is what its tokenizer's chat template makes of
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from scaleup.models.builtin import build
from tests.classifier import sharp_classifier
from tests.cli import differing, losses, run

pytestmark = [pytest.mark.slow, pytest.mark.covers("sft", "ppo", "distill", "prune", "quantize")]
OWN = "[CLS]{% for m in messages %}{{ m['role'] + ' said ' + m['content'] + '[SEP]' }}{% endfor %}"
STUDENTS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "stage": "sft",
    "name": "x",
    "model": {"path": "model"},
    "data": {"train": "chats.jsonl", "messages": "messages", "max_length": 256},
    "train": {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 6},
    "parallel": {"strategy": "single"},
}


def chats() -> list[list[dict[str, str]]]:
    turns = [("user", "Name animal number {}."), ("assistant", "The cat"), ("user", "More? {}"), ("assistant", "No")]
    return [
        [{"role": role, "content": words.format("x" * n)} for role, words in turns[: 2 + n % 2 * 2]] for n in range(6)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, whose eos ends no turn, and six conversations of several lengths."""
    folder = tmp_path_factory.mktemp("chats")
    build("tiny-llama", folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder / "model")
    (folder / "model/generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    (folder / "students.jinja").write_text(STUDENTS)
    for name in ("chats", "held"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in chats()))
    return folder


def trained(place: Path, name: str, **changes: Any) -> Path:
    return run(differing(CONFIG, {**changes, "name": name}), cwd=place)


@pytest.mark.long
def test_batches_by_length_learn_what_rows_do(place: Path) -> None:
    """Packed, or of so many tokens: the loss and its gradient are those of the six rows."""
    plain = losses(trained(place, "rows"))
    packed = {"data.packing": True, "train.per_device_train_batch_size": 1, "data.max_length": 512}
    assert losses(trained(place, "packed", **packed)) == pytest.approx(plain, abs=1e-5)
    once = {"train.max_steps": None, "train.num_train_epochs": 1, "train.per_device_train_batch_size": None}
    by_tokens = trained(place, "tokens", **once, **{"train.tokens_per_device": 6 * 256})
    assert losses(by_tokens) == pytest.approx({1: plain[1]}, abs=1e-5)


def test_a_reward_model_beside_the_policy_reads_by_its_own_template(place: Path) -> None:
    reward = sharp_classifier(place / "reward")
    tokenizer = AutoTokenizer.from_pretrained(reward)
    tokenizer.chat_template = OWN
    tokenizer.save_pretrained(reward)
    ppo = {"num_rollouts": 1, "rollout_batch_size": 6, "num_ppo_epochs": 1, "max_new_tokens": 8, "num_samples": 6}
    source = {"placement": "colocated", "model": {"path": "reward"}, "label": "positive"}
    changes = {"stage": "ppo", "ppo": ppo, "reward": source, "train": {"learning_rate": 1e-9}}
    folder = trained(place, "ppo", **changes, **{"data.test": "held.jsonl"})
    rows = [row for file in (folder / "samples").glob("*.json") for row in json.loads(file.read_text())]
    asked = {messages[0]["content"]: messages[:-1] for messages in chats()}
    model = AutoModelForSequenceClassification.from_pretrained(reward).eval()
    assert rows
    for row in rows:
        [messages] = [messages for words, messages in asked.items() if f"{words}<" in row["prompt"]]
        whole = [*messages, {"role": "assistant", "content": row["response"]}]
        ids = tokenizer.apply_chat_template(whole, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            assert row["score"] == pytest.approx(float(model(**ids).logits[0, 1]), abs=1e-4)


def answers_of(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and which are of its answers: their words and what ends the turn."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    found = [f"{each['content']}<|im_end|>\n" for each in messages if each["role"] == "assistant"]
    spans = [(text.index(answer), text.index(answer) + len(answer)) for answer in found]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learned = [any(a < end and b > start for start, end in spans) for a, b in encoded["offset_mapping"]]
    return encoded["input_ids"], learned


def test_a_teacher_of_answers(place: Path) -> None:
    """Cached with all that it says, or beside hidden states: its divergence at the tokens of the answers."""
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    student = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    build("tiny-qwen2", place / "teacher")
    teacher = AutoModelForCausalLM.from_pretrained(place / "teacher").eval()
    total, count = 0.0, 0
    for messages in chats():
        ids, learned = answers_of(tokenizer, messages)
        with torch.no_grad():
            log_p, log_q = (model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for model in (teacher, student))
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        total, count = total + float(divergence[torch.tensor(learned[1:])].sum()), count + sum(learned)
    changes = {"stage": "distill", "teacher": {"path": "teacher"}, "train.max_steps": 1}
    cached = {"alpha": 1, "cache": {"top_k": student.config.vocab_size - 1}}
    hidden = {"alpha": 1, "hidden": {"weight": 1e-9, "loss": "mse"}}
    for name, distill in (("cached", cached), ("hidden", hidden)):
        found = losses(trained(place, name, **changes, distill=distill))
        assert found == pytest.approx({1: total / count}, abs=1e-5), name


@pytest.mark.parametrize(
    "stage",
    [
        {"stage": "prune", "prune": {"layers": 1, "calibration_rows": 6}},
        {"stage": "quantize", "quantize": {"method": "int8_weight_only"}},
    ],
    ids=lambda s: s["stage"],
)
def test_a_smaller_model_keeps_template_and_ends(place: Path, stage: dict[str, Any]) -> None:
    """Those that the config names; the base's own file ends answers with its eos alone."""
    data = {"train": "chats.jsonl", "test": "held.jsonl", "messages": "messages", "chat_template": "students.jinja"}
    if stage["stage"] == "quantize":
        del data["train"]
    config = {"name": stage["stage"], "model": {"path": "model"}, "data": data, **stage}
    folder = run(config, cwd=place) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == STUDENTS
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
