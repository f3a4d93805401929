"""Mistakes about pruning."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from tests.e2e.mistakes.case import Case, bad, model
from tests.e2e.mistakes.saved_adapters import adapters

PRUNE: dict[str, Any] = {"stage": "prune", "train": None, "data.validation": None}


def cut(path: str = "builtin:tiny-llama", **prune: Any) -> dict[str, Any]:
    """The good config as one that prunes this model; of calibration rows it has two."""
    return {**PRUNE, "model.path": path, "prune": {"calibration_rows": 2, **prune}}


SMALL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
"""The config.json of a model whose weights nobody looks at."""


def made(**config: Any) -> dict[str, Any]:
    """A case about a model of this config.json, with a tokenizer from elsewhere."""
    return {"prepare": model(json.dumps(SMALL | config), "model.safetensors"), "asks": True}


TOKENIZER = {"model.tokenizer": "builtin:tiny-llama"}
LABELLED = {"data.prompt": None, "data.completion": None, "data.text": "{text}", "data.label": "label"}

NO_MODELOPT = (
    ["error: prune.sparsity_score: sparsegpt needs nvidia-modelopt -> pip install 'scaleup[sparsegpt]'"]
    if importlib.util.find_spec("modelopt") is None
    else []
)

PRUNE_MISTAKES: list[Case] = [
    bad(
        "rounds without training",
        "error: prune.rounds: without training in between are one cut -> give recovery, or leave it out",
        changes=cut(layers=1, rounds=2),
    ),
    bad(
        "a recovery of unknown length, of zeros, and of a list of layers in rounds",
        "error: recovery.train.max_steps: is needed -> give max_steps or num_train_epochs",
        "error: recovery.distill.beta: has no meaning for forward_kl",
        "error: prune.sparsity: zeros do not outlive training",
        "error: prune.layers: in several rounds is a count, not a list",
        changes={
            **cut(layers=[0], sparsity=0.5, rounds=2),
            "recovery": {"train": {}, "distill": {"beta": 0.5}},
        },
    ),
    bad(
        "keys and values",
        "error: prune.layers.1: -1 should be greater than or equal to 0",
        "error: prune.layer_score: 'influence' is not valid -> did you mean 'block_influence'?",
        "error: prune.num_heads: unknown key -> did you mean",
        "error: prune.sparsity: 1.0 should be less than 1",
        "error: prune.pattern: '4:8' is not valid",
        "error: prune.calibration_rows: True should be a number",
        changes=cut(
            layers=[0, -1],
            layer_score="influence",
            intermediate_size=64,
            num_heads=2,
            sparsity=1.0,
            pattern="4:8",
            calibration_rows=True,
        ),
    ),
    bad("no section", "error: prune: is missing -> add it", changes=PRUNE),
    bad(
        "nothing to cut, under a strategy that has no whole model, in bf16",
        "error: prune: names nothing to cut -> give layers",
        "error: parallel.strategy: zero3 holds a part of the model on each rank, and pruning needs all of it",
        "error: mixed_precision: pruning measures and checks in float32",
        changes={**cut(), "parallel.strategy": "zero3", "mixed_precision": "bf16"},
    ),
    bad(
        "rows and numbers that are not there",
        "error: data.train: is needed by the prune stage",
        "error: prune.sparsity: two zeros in four are a sparsity of 0.5, not 0.3 -> set it to 0.5",
        "error: prune.layers: names layer 0 twice -> name each once",
        changes={**cut(layers=[0, 0], sparsity=0.3, pattern="2:4"), "data.train": None},
    ),
    bad(
        "a pattern without sparsity, and too few rows to calibrate on",
        "error: prune.sparsity: two zeros in four are a sparsity of 0.5, not nothing -> set it to 0.5",
        "error: prune.calibration_rows: 128 are more than the 2 of data.train -> use at most 2",
        changes=cut(layers=1, pattern="2:4", calibration_rows=128),
    ),
    bad(
        "sparsegpt unstructured in two processes",
        'error: prune.pattern: nvidia-modelopt\'s SparseGPT makes two zeros in four -> set it to "2:4"',
        "error: parallel.num_processes: SparseGPT measures in one process",
        *NO_MODELOPT,
        changes={**cut(sparsity=0.5, sparsity_score="sparsegpt"), "parallel.num_processes": 2},
    ),
    bad(
        "an adapter",
        "is an adapter, and what is cut is a whole model -> export it first: scaleup export",
        changes=cut("./one", layers=1),
        prepare=adapters(one={}),
    ),
    bad(
        "sizes that are not smaller",
        "error: prune.layers: 2 is not below the model's 2 -> use at most 1",
        "error: prune.intermediate_size: 128 is not below the model's 128 -> use at most 127",
        "error: prune.num_key_value_heads: 3 is not below the model's 2 -> use at most 1",
        "error: prune.head_dim: cannot be changed: rotary frequencies depend on the width of a head",
        changes=cut(layers=2, intermediate_size=128, num_key_value_heads=3, head_dim=8),
        asks=True,
    ),
    bad(
        "heads that are no setting of their own",
        "error: prune.num_key_value_heads: cannot be changed: GPT-2 has no width of heads of its own",
        "error: prune.head_dim: cannot be changed: GPT-2 has no width of heads of its own",
        "error: prune.layers: there is no layer 4: the model has 2 -> use numbers from 0 to 1",
        changes=cut("builtin:tiny-gpt2", layers=[0, 4], num_key_value_heads=2, head_dim=8),
        asks=True,
    ),
    bad(
        "all layers kept",
        "error: prune.layers: keeps all 2 layers -> name fewer",
        changes=cut(layers=[1, 0]),
        asks=True,
    ),
    bad(
        "2:4 in odd widths",
        "error: prune.pattern: 2:4 needs rows of four, and some matrices have 126 inputs -> use unstructured",
        changes=cut(intermediate_size=126, sparsity=0.5, pattern="2:4"),
        asks=True,
    ),
    bad(
        "an architecture that is not known",
        "error: model.path: it is not known how BartForConditionalGeneration (bart) is built -> use one of decoders",
        changes=cut("builtin:tiny-bart", layers=1),
        asks=True,
    ),
    bad(
        "a classifier of rows without a class, and sizes that are not smaller",
        "error: data: says nothing of a text's class, and model is a classifier -> give data.text and data.label",
        "error: prune.layers: 2 is not below the model's 2 -> use at most 1",
        "error: prune.head_dim: cannot be changed: BERT has no width of heads of its own",
        changes=cut("builtin:tiny-bert-classifier", layers=2, head_dim=8),
        asks=True,
    ),
    bad(
        "a language model of rows with a class",
        "error: model.path: (LlamaForCausalLM) is no classifier, and the rows are texts with a class -> name a class",
        changes={**cut(layers=1), **LABELLED},
        asks=True,
    ),
    bad(
        "a reward model",
        "error: model.path: (LlamaForSequenceClassification) has one score and no classes -> name a classifier of two",
        changes={**cut("./m", layers=1), **TOKENIZER, **LABELLED},
        **made(num_attention_heads=4, architectures=["LlamaForSequenceClassification"], num_labels=1),
    ),
    bad(
        "an encoder without a head",
        "error: model.path: 'builtin:tiny-bert' (bert) is an encoder: it cannot generate text",
        changes={**cut("builtin:tiny-bert", layers=1), **LABELLED},
        asks=True,
    ),
    bad(
        "a classifier that is not known",
        "error: model.path: it is not known how DistilBertForSequenceClassification (distilbert) is built -> use one",
        changes={**cut("./m", layers=1), **TOKENIZER, **LABELLED},
        **made(model_type="distilbert", n_heads=4, architectures=["DistilBertForSequenceClassification"]),
    ),
    bad(
        "a classifier recovered without a class, by states that it does not have",
        "error: data: says nothing of a text's class, and model is a classifier -> give data.text and data.label",
        "error: recovery.distill.hidden.layers.0: model has no layer 7",
        "error: recovery.distill.hidden.layers.0: teacher has no layer 9",
        changes={
            **cut("builtin:tiny-bert-classifier", layers=1),
            "recovery": {"train": {"max_steps": 2}, "distill": {"hidden": {"layers": [[7, 9]]}}},
        },
        asks=True,
    ),
    bad(
        "a recovery whose cache has more tokens than there are",
        "error: recovery.distill.cache.top_k: 300 is more than the vocabulary's 259 tokens -> use at most 259",
        changes={
            **cut("builtin:tiny-llama", layers=1),
            "recovery": {"train": {"max_steps": 2}, "distill": {"cache": {"top_k": 300}}},
        },
        asks=True,
    ),
    bad(
        "a quantized model",
        "m is quantized already (bitsandbytes): stage prune needs the weights it was made of",
        changes={**cut("./m", layers=1), **TOKENIZER},
        **made(num_attention_heads=4, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ),
    bad(
        "heads that do not divide the hidden width",
        "error: prune: Transformers refuses a model of these sizes: ",
        changes={**cut("./m", num_key_value_heads=3), **TOKENIZER},
        **made(num_attention_heads=4),
    ),
]

CASES = {"prune": PRUNE_MISTAKES}
