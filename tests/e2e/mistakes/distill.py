"""Mistakes in distillations."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.mistakes.case import Case, Prepare, bad

BASE: dict[str, Any] = {"stage": "distill", "teacher": {"path": "builtin:tiny-qwen2"}}


def taught(
    *lines: str,
    name: str,
    distill: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    prepare: Prepare = lambda folder: None,
    asks: bool = False,
) -> Case:
    given = {**BASE, **({"distill": dict(distill)} if distill else {}), **(changes or {})}
    return bad(name, *lines, changes=given, prepare=prepare, asks=asks)


def other_ids(folder: Path) -> None:
    """The tiny Qwen's tokenizer with two tokens' ids exchanged, in `swapped`."""
    command = "from pathlib import Path; from scaleup.models.builtin import build; build('tiny-qwen2', Path('swapped'))"
    subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, check=True)
    file = folder / "swapped/tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    ids = found["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(found), encoding="utf-8")


def adapter_model(folder: Path) -> None:
    (folder / "lora").mkdir()
    (folder / "lora/adapter_config.json").write_text(
        '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/base"}'
    )
    (folder / "lora/adapter_model.safetensors").write_text("weights")


DISTILL = [
    taught(
        "error: distill.generation.prompts: are those of data.train",
        "error: distill.generation.top_p: has no meaning for greedy decoding",
        "error: data.text: gives no prompts to generate from -> set data.prompt instead",
        name="a teacher that has nothing to answer",
        distill={"mode": "sequence", "generation": {"prompts": ["a"], "top_p": 0.5}},
        changes={"data.prompt": None, "data.completion": None, "data.text": "{text}"},
    ),
    taught(
        "error: distill.generation: has no meaning for rows as they are -> use mode: sequence or on_policy",
        name="a way to write, and nothing to be written",
        distill={"generation": {"max_new_tokens": 3}},
    ),
    taught(
        "error: distill.generation.stop: the student's own answers are drawn as the model's probabilities are, by "
        "temperature and top_p -> leave it out",
        "error: distill.generation.repetition_penalty: the student's own answers are drawn as the model's",
        "error: distill.generation.seed: is train.seed here -> leave it out",
        "error: distill.generation.num_return_sequences: one answer a prompt is learned -> leave it out",
        name="other answers than a student's own",
        distill={
            "mode": "on_policy",
            "alpha": 1.0,
            "generation": {
                "temperature": 1.0,
                "stop": ["x"],
                "repetition_penalty": 1.2,
                "seed": 3,
                "num_return_sequences": 2,
            },
        },
        changes={},
    ),
    taught(
        "error: distill.alpha: the student's own answers have no labels, so the teacher's share is all -> set it to 1",
        "error: distill.generation.temperature: 0 is greedy, and the student's own answers are drawn",
        "error: distill.generation.num_beams: the student's own answers are drawn, not searched for -> leave it out",
        "error: data.packing: each answer follows its own prompt -> leave it out",
        "error: train.group_by_length: a step is as many prompts as it is",
        "error: train.group_by_length: and data.packing exclude each other",
        "error: data.validation_fraction: prompts are held out by name -> give data.validation",
        name="what has no place where a student answers",
        distill={"mode": "on_policy", "generation": {"num_beams": 2}},
        changes={
            "data.packing": True,
            "data.validation": None,
            "data.validation_fraction": 0.5,
            "train.group_by_length": True,
        },
    ),
    taught(
        "error: adapter.type: nothing here shows the virtual tokens of prompt_tuning to be the same with a cache",
        name="virtual tokens where a student answers",
        distill={"mode": "on_policy", "alpha": 1, "generation": {"temperature": 1}},
        changes={"adapter": {"type": "prompt_tuning", "num_virtual_tokens": 2}},
    ),
    taught(
        "error: distill.generation.max_new_tokens: 5000 and prompts of data.max_length",
        name="answers longer than the models have positions for",
        distill={"mode": "on_policy", "alpha": 1, "generation": {"temperature": 1, "max_new_tokens": 5000}},
        asks=True,
    ),
    taught(
        "error: distill.divergence: reverse_kl asks for the teacher's probability of every token, and distill.cache",
        "error: distill.hidden: compares with the teacher's states, and distill.cache holds its tokens alone",
        "error: distill.cache: with distill.alpha 0 the teacher has no say -> leave it out",
        "error: data.packing: is not for rows with a cached teacher -> use train.tokens_per_device",
        name="what a cache cannot hold",
        distill={"cache": {"top_k": 8}, "divergence": "reverse_kl", "hidden": {"weight": 1.0}, "alpha": 0},
        changes={"data.packing": True},
    ),
    taught(
        "error: data.streaming: the teacher goes over all rows before training (distill.cache) -> leave either out",
        name="rows that are not known beforehand",
        distill={"cache": {}},
        changes={"data.streaming": True},
    ),
    taught(
        "error: distill.cache: is of tokens, and these rows have a class each -> leave it out",
        name="a cache of classes",
        distill={"cache": {}},
        changes={
            "model": {"path": "builtin:tiny-bert"},
            "teacher": {"path": "builtin:tiny-bert-classifier"},
            **{"data.prompt": None, "data.completion": None, "data.text": "{text}", "data.label": "label"},
        },
    ),
    taught(
        "error: distill.cache.top_k: 0 should be greater than or equal to 1",
        "error: distill.cache.k: unknown key",
        name="no token of a cache",
        distill={"cache": {"top_k": 0, "k": 3}},
    ),
    taught(
        "error: distill.cache.top_k: 300 is more than the vocabulary's 259 tokens -> use at most 259",
        name="more tokens than there are",
        distill={"cache": {"top_k": 300}},
        asks=True,
    ),
    taught(
        "error: teacher.path: there is no model folder runs/larger -> name a Hugging Face folder",
        name="a run that was not made yet, which no hub is asked for",
        changes={"teacher": {"path": "runs/larger"}},
    ),
    bad("no teacher", "error: teacher: is missing", changes={"stage": "distill"}),
    *(
        taught(
            f"error: distill.student_layers{said}", name=f"layers that are {layers}", distill={"student_layers": layers}
        )
        for layers, said in (
            ({"every": 1}, ".every: 1 should be greater than or equal to 2 -> mend the value"),
            ({"every": 2, "evry": 3}, ".evry: unknown key -> did you mean 'every'?"),
            ([0, "a"], ".1: 'a' should be a valid integer"),
            (5, ": 5 should be a valid list -> mend the value"),
        )
    ),
    taught(
        "error: teacher.path: there is no model folder no/such/model",
        "error: distill.beta: has no meaning for forward_kl -> use divergence: jsd, or leave it out",
        "error: distill.student_layers: must rise from one number to the next",
        "error: mixed_precision: the gradient of a distillation's logits is made in the forward pass",
        "error: mixed_precision: fp16 needs a GPU",
        name="everything at once",
        distill={"beta": 0.3, "student_layers": [1, 0]},
        changes={"teacher": {"path": "no/such/model"}, "mixed_precision": "fp16"},
    ),
    taught(
        "error: distill.temperature: 0 should be greater than 0",
        "error: distill.alpha: 1.5 should be less than or equal to 1",
        "error: distill.beta: 1 should be less than 1",
        "error: distill.divergence: 'kl' is not valid",
        "error: distill.hidden.loss: 'l1' is not valid",
        "error: distill.hidden.wieght: unknown key -> did you mean 'weight'?",
        name="values",
        distill={
            "temperature": 0,
            "alpha": 1.5,
            "beta": 1,
            "divergence": "kl",
            "hidden": {"loss": "l1", "wieght": 1},
        },
    ),
    taught(
        "error: quantization: quantized weights cannot be trained",
        name="a quantized student without an adapter",
        changes={"quantization": "8bit"},
    ),
    taught(
        "error: adapter.type: adalora weighs the ranks of one model",
        name="adalora",
        changes={"adapter": {"type": "adalora", "tfinal": 1}},
    ),
    taught(
        "error: distill.student_layers: an adapter names its base",
        "error: quantization: layers are cut from weights as they are",
        name="layers of a student with an adapter",
        distill={"student_layers": {"every": 2}},
        changes={"adapter": {"type": "lora"}, "quantization": "4bit"},
    ),
    taught(
        "is an adapter, which fits all layers of its base",
        name="layers of a student that is an adapter",
        distill={"student_layers": [0]},
        changes={"model": {"path": "lora"}},
        prepare=adapter_model,
    ),
    taught(
        "error: data.chosen: is of preferences, which stage distill does not learn from -> use stage: dpo,",
        name="preferences",
        changes={"data.prompt": "{text}", "data.completion": None, "data.chosen": "{text}", "data.rejected": "{label}"},
    ),
    taught(
        "error: teacher.path: is a seq2seq_lm model (T5ForConditionalGeneration), and model is a causal_lm model",
        name="a teacher of another kind",
        changes={"teacher": {"path": "builtin:tiny-t5"}},
        asks=True,
    ),
    taught(
        "error: teacher.path: is a sequence_classification model (BertForSequenceClassification)",
        name="a teacher that scores",
        changes={"teacher": {"path": "builtin:tiny-bert-classifier"}},
        asks=True,
    ),
    taught(
        "rows.csv: and 1 more row fails",
        *(
            f"rows.csv:{line}: 'label' {label!r} is no class of the model -> use one of negative, positive, or its"
            for line, label in ((3, "2"), (4, "-1"), (5, "0.5"), (6, "good"), (8, "2"))
        ),
        name="classes that there are not",
        changes={
            "model": {"path": "builtin:tiny-bert"},
            "teacher": {"path": "builtin:tiny-bert-classifier"},
            **{"data.prompt": None, "data.completion": None, "data.text": "{text}", "data.label": "label"},
            **{"data.train": "rows.csv", "data.validation": None},
        },
        prepare=lambda folder: (folder / "rows.csv").write_text(
            "text,label\na,1\na,2\na,-1\na,0.5\na,good\na,negative\na,2\na,3\n"
        ),
        asks=True,
    ),
    taught(
        "error: teacher.path: its tokenizer has 258 tokens, and model's 259 -> name a teacher of the student's family",
        name="vocabularies of two sizes",
        changes={"model": {"path": "builtin:tiny-bart"}, "teacher": {"path": "builtin:tiny-t5"}},
        asks=True,
    ),
    taught(
        "error: teacher.path: its tokenizer maps the same tokens to different ids",
        "error: distill.hidden.layers.0: model has no layer 2 -> its layers are 0 to 1",
        "error: distill.hidden.layers.1: teacher has no layer 7 -> its layers are 0 to 1",
        name="a tokenizer with other ids, layers that there are not",
        distill={"hidden": {"layers": [[2, 0], [0, 7]]}},
        changes={"teacher": {"path": "builtin:tiny-qwen2", "tokenizer": "swapped"}},
        prepare=other_ids,
        asks=True,
    ),
    taught(
        "error: distill.student_layers: llama: ",
        name="layers that the student has not",
        distill={"student_layers": [0, 5]},
        asks=True,
    ),
]

CASES = {"distill": DISTILL}
