"""What a run learns of text is what it says: with a tokenizer that puts spaces before words, an eos that is not the
model's and turns that end with a third token, whoever loads the model gets the answers that were taught."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.cli import metrics, run, scaleup
from tests.unit.data.families import metaspace

pytestmark = pytest.mark.covers("sft", "generate")
TURN_END = "<|im_end|>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def chats(numbers: range) -> list[dict[str, Any]]:
    turns = (
        ("user", "Name animal number {}."),
        ("assistant", "The cat"),
        ("user", "And its food?"),
        ("assistant", "fish"),
    )
    return [
        {"messages": [{"role": role, "content": content.format(number)} for role, content in turns]}
        for number in numbers
    ]


def pairs(numbers: range) -> list[dict[str, Any]]:
    return [{"q": f"Review: a film {number}\nSentiment:", "a": " very positive"} for number in numbers]


def sources(split: str) -> list[dict[str, str]]:
    return [
        {"path": f"{split}-chats.jsonl", "messages": "messages"},
        {"path": f"{split}-pairs.jsonl", "prompt": "{q}", "completion": "{a}"},
    ]


SPLITS = {"train": range(6), "held": range(6, 8)}
HELD = [*chats(SPLITS["held"]), *pairs(SPLITS["held"])]
CONFIG: dict[str, Any] = {
    "stage": "sft",
    "name": "taught",
    "model": {"path": "model"},
    "data": {
        "train": sources("train"),
        "validation": sources("held"),
        "test": sources("held"),
        "max_length": 128,
    },
    "train": {"max_steps": 40, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "eval_steps": 40},
    "parallel": {"strategy": "single"},
    "generation": {"max_new_tokens": 16},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    tokenizer = metaspace(template=TEMPLATE, pad_token="<unk>")
    tokenizer.add_tokens([AddedToken(TURN_END, special=True)], special_tokens=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, bos_token_id=1, eos_token_id=7))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split, numbers in SPLITS.items():
        for kind in (chats, pairs):
            lines = "".join(json.dumps(row) + "\n" for row in kind(numbers))
            (folder / f"{split}-{kind.__name__}.jsonl").write_text(lines)
    rows = ({"messages": row["messages"][:-1]} for row in chats(SPLITS["train"]))
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def taught(place: Path) -> Path:
    return run(CONFIG, cwd=place)


def text_of(row: dict[str, Any], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """A row's text, and the characters that are learned, by hand."""
    if "q" in row:
        text = f"{row['q']}{row['a']}{tokenizer.eos_token}"
        return text, [(text.index(row["a"]), len(text))]
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    answers = [f"{message['content']}{TURN_END}\n" for message in row["messages"][1::2]]
    return text, [(text.index(answer), text.index(answer) + len(answer)) for answer in answers]


def asked(row: dict[str, Any], tokenizer: Any) -> Any:
    if "q" in row:
        return tokenizer(row["q"], return_tensors="pt", return_token_type_ids=False)
    return tokenizer.apply_chat_template(
        row["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


def loaded(taught: Path) -> tuple[Any, Any]:
    """The model as anybody loads it."""
    return (
        AutoModelForCausalLM.from_pretrained(taught / "model").eval(),
        AutoTokenizer.from_pretrained(taught / "model"),
    )


def test_the_loss_is_transformers_own_on_the_same_text(taught: Path) -> None:
    """Their tokens of the whole text, with the labels of the characters that are learned."""
    model, tokenizer = loaded(taught)
    total, count = 0.0, 0
    for row in HELD:
        text, spans = text_of(row, tokenizer)
        encoded = tokenizer(text, add_special_tokens="q" in row, return_offsets_mapping=True)
        learned = [any(a < end and b > start for start, end in spans) for a, b in encoded["offset_mapping"]]
        labels = [token if is_in else -100 for token, is_in in zip(encoded["input_ids"], learned, strict=True)]
        with torch.no_grad():
            loss = model(torch.tensor([encoded["input_ids"]]), labels=torch.tensor([labels])).loss
        total, count = total + float(loss) * sum(learned), count + sum(learned)
    [logged] = [line["eval_loss"] for line in metrics(taught) if "eval_loss" in line]
    assert logged == pytest.approx(total / count, abs=1e-5)
    assert logged < 0.05, "it has learned its rows"


def test_transformers_answers_as_generate_does(taught: Path, place: Path) -> None:
    """Both stop where the answers that were taught end, and have all of their words."""
    result = scaleup("generate", taught, cwd=place)
    assert result.code == 0, result.stderr
    lines = (taught / "generations/1/generations.jsonl").read_text().splitlines()
    shown = [json.loads(line) for line in lines]
    assert [row["completion"] for row in shown] == ["fish"] * 2 + [" very positive"] * 2
    model, tokenizer = loaded(taught)
    for row, ours in zip(HELD, shown, strict=True):
        prompt = asked(row, tokenizer)
        [written] = model.generate(**prompt, max_new_tokens=16, do_sample=False)
        before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt["input_ids"][0], written))
        assert whole == before + ours["completion"]
        assert len(written) < prompt["input_ids"].shape[1] + 16, "it stops by itself"


SHORT = {"max_steps": 1, "per_device_train_batch_size": 4}


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_wrote(taught: Path, place: Path) -> None:
    distill = {"mode": "sequence", "alpha": 0, "generation": {"max_new_tokens": 16}}
    data = {"train": sources("train"), "max_length": 128}
    config = {"stage": "distill", "name": "student", "model": {"path": "model"}, "data": data, "distill": distill}
    folder = run(
        {**config, "teacher": {"path": str(taught)}, "train": SHORT, "parallel": {"strategy": "single"}}, cwd=place
    )
    answered, completed = (read(folder / f"teacher/{number}.jsonl") for number in range(2))
    assert [row["completion"] for row in completed] == [" very positive"] * 6
    assert [row["completion"][0]["content"] for row in answered] == ["fish"] * 6


@pytest.mark.slow
@pytest.mark.long
def test_a_students_own_answers_end(taught: Path, place: Path) -> None:
    """Where turns do: the eos of the tokenizer and of the student's files are other tokens."""
    student = shutil.copytree(taught / "model", place / "unended")
    (student / "generation_config.json").write_text('{"eos_token_id": 7}')
    generation = {"max_new_tokens": 16, "temperature": 0.01}
    distill = {"mode": "on_policy", "divergence": "reverse_kl", "alpha": 1, "generation": generation}
    data = {"train": [{"path": "asked.jsonl", "messages": "messages"}], "max_length": 128}
    config = {"stage": "distill", "name": "own", "model": {"path": "unended"}, "data": data, "distill": distill}
    folder = run(
        {**config, "teacher": {"path": str(taught)}, "train": SHORT, "parallel": {"strategy": "single"}}, cwd=place
    )
    [line] = [line for line in metrics(folder) if "completions/mean_length" in line]
    assert line["completions/clipped_ratio"] == 0
    assert line["completions/mean_length"] < 16


REWARD = """
import json

def reward(prompts, completions, **columns):
    with open("seen.jsonl", "a") as file:
        file.writelines(json.dumps(pair) + "\\n" for pair in zip(prompts, completions))
    return [float(len(text)) for text in completions]
"""


@pytest.mark.slow
def test_a_reward_reads_what_its_policy_wrote(taught: Path, place: Path) -> None:
    (place / "seen.py").write_text(REWARD)
    prompts = [{"path": "asked.jsonl", "messages": "messages"}, {"path": "train-pairs.jsonl", "prompt": "{q}"}]
    ppo = {"num_rollouts": 1, "rollout_batch_size": 8, "num_ppo_epochs": 1, "max_new_tokens": 16, "temperature": 0.01}
    config = {"stage": "ppo", "name": "policy", "model": {"path": str(taught)}, "data": {"train": prompts}, "ppo": ppo}
    config |= {"reward": {"placement": "function", "function": "seen.py:reward"}, "train": {"learning_rate": 1e-9}}
    run({**config, "parallel": {"strategy": "single"}}, cwd=place)
    seen = [json.loads(line) for line in (place / "seen.jsonl").read_text().splitlines()]
    assert {answer for prompt, answer in seen if prompt.startswith("Review")} == {" very positive"}
    of_chats = [pair for pair in seen if not pair[0].startswith("Review")]
    assert len(of_chats) == 4 and {answer for _, answer in of_chats} == {"The cat"}
    assert all(prompt.count("<s>") == 1 for prompt, _ in of_chats)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
