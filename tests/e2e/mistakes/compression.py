"""Mistakes about formats of an export, and about quantization."""

from __future__ import annotations

from typing import Any

from tests.e2e.mistakes.case import Case, bad, model
from tests.e2e.mistakes.saved_adapters import EXPORT, adapters

NO_DATA = {"stage": "quantize", "train": None, "data": None, "quantize.method": "int8_weight_only"}
QUANTIZED = '{"model_type": "llama", "quantization_config": {"quant_method": "torchao"}}'


def export(name: str, *lines: str, **rest: Any) -> Case:
    changes = {**EXPORT, **rest.pop("changes")}
    return bad(name, *lines, changes=changes, command=("export", "config.yaml"), **rest)


FORMATS = [
    export(
        "a gguf without the converter",
        "/converter -> fetch it: make converter, or scripts/prepare_converter.py",
        changes={"export.format": "gguf"},
    ),
    export(
        "a gguf with a type of safetensors, and a converter that is not there",
        "error: export.dtype: is of safetensors -> use export.gguf_type",
        "error: export.max_shard_size: is of safetensors -> leave it out",
        "error: export.converter: llama.cpp's converter is not in nowhere -> fetch it: make converter",
        changes={"export": {"format": "gguf", "dtype": "float16", "max_shard_size": "1GB", "converter": "nowhere"}},
    ),
    export(
        "a gguf's type for another format",
        "error: export.gguf_type: says nothing of onnx -> leave it out, or use export.format: gguf",
        changes={"export": {"format": "onnx", "gguf_type": "q8_0"}},
    ),
    export(
        "an encoder-decoder model as gguf",
        "error: export.format: T5ForConditionalGeneration is an encoder-decoder model. llama.cpp's converter takes T5",
        changes={"model.path": "builtin:tiny-t5", "export": {"format": "gguf", "converter": "c"}},
        prepare=lambda folder: ((folder / "c").mkdir(), (folder / "c/convert_hf_to_gguf.py").touch()),
        asks=True,
    ),
    export(
        "a language model as onnx",
        "error: export.format: LlamaForCausalLM is a causal_lm model, and onnx is for encoders and classifiers",
        changes={"export.format": "onnx"},
        asks=True,
    ),
    export(
        "an encoder-decoder classifier as onnx",
        "error: export.format: BartForSequenceClassification looks for its eos token in each row",
        changes={
            "model": {"path": "builtin:tiny-bart", "task": "sequence_classification"},
            "export.format": "onnx",
        },
        asks=True,
    ),
    export(
        "a classifier as safetensors",
        "error: model.path: is a sequence classifier (BertForSequenceClassification), and safetensors are checked as",
        changes={"model.path": "builtin:tiny-bert-classifier"},
        asks=True,
    ),
    export(
        "a quantized model",
        "/m is quantized already (torchao): stage export needs the weights it was made of",
        changes={"model.path": "./m"},
        prepare=model(QUANTIZED, "model.safetensors"),
    ),
]

QUANTIZE = [
    bad(
        "no method",
        "error: quantize.method: is missing -> add it",
        changes={**NO_DATA, "quantize": {}},
    ),
    bad(
        "settings of other methods, two processes and bf16",
        "error: quantize.group_size: has no meaning for bfloat16 -> leave it out",
        "error: quantize.skip: has no meaning for bfloat16, which all weights are rounded to -> leave it out",
        "error: parallel.num_processes: quantization is one process -> leave it out",
        "error: mixed_precision: results are compared in float32 -> leave it out; quantize.method is what is written",
        changes={
            **NO_DATA,
            "quantize": {"method": "bfloat16", "group_size": 32, "skip": ["*"]},
            "parallel.num_processes": 2,
            "mixed_precision": "bf16",
        },
    ),
    bad(
        "4 bits on a CPU",
        "error: quantize.method: int4_weight_only needs a CUDA GPU and the package mslk",
        changes={**NO_DATA, "quantize.method": "int4_weight_only", "parallel.device": "cpu"},
    ),
    bad(
        "an adapter that is not merged",
        "/one is an adapter: its base would be quantized without it -> merge it first: scaleup export",
        changes={**NO_DATA, "model.path": "./one"},
        prepare=adapters(one={}),
    ),
    bad(
        "a model that is quantized already",
        "/m is quantized already (torchao): stage quantize needs the weights it was made of",
        changes={**NO_DATA, "model.path": "./m"},
        prepare=model(QUANTIZED, "model.safetensors"),
    ),
    bad(
        "training a quantized model",
        "/m is quantized already (torchao): stage sft needs the weights it was made of",
        changes={"model.path": "./m"},
        prepare=model(QUANTIZED, "model.safetensors"),
    ),
    bad(
        "a quantized teacher",
        "/m is quantized already (torchao), and strategies shard plain weights -> name the unquantized model",
        changes={"stage": "distill", "teacher": {"path": "./m"}},
        prepare=model(QUANTIZED, "model.safetensors"),
    ),
    bad(
        "quantizing what is evaluated once more",
        "/m is quantized already (torchao) -> leave it out",
        changes={
            "stage": "evaluate",
            "train": None,
            "data.test": "held.jsonl",
            "model.path": "./m",
            "quantization": "8bit",
        },
        prepare=model(QUANTIZED, "model.safetensors"),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "a classifier",
        "error: model.path: is a sequence classifier (BertForSequenceClassification): it scores texts and writes none",
        changes={**NO_DATA, "model.path": "builtin:tiny-bert-classifier"},
        asks=True,
    ),
    bad(
        "a T5 in fp16",
        "error: quantize.method: T5 models overflow in fp16 -> use bfloat16 or int8_weight_only",
        changes={**NO_DATA, "model.path": "builtin:tiny-t5", "quantize.method": "float16"},
        asks=True,
    ),
]

EXPERTS = [
    bad(
        "a mixture of experts in 8 bits",
        "error: quantize.method: is not supported with MixtralForCausalLM: its experts are stacked in tensors of three",
        changes={**NO_DATA, "model.path": "builtin:tiny-mixtral"},
        asks=True,
    ),
]

CASES = {"format": FORMATS, "quantize": [*QUANTIZE, *EXPERTS]}
