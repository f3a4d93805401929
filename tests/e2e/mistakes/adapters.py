"""Mistakes about what is trained on top of a model."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.mistakes.case import Prepare, bad

LORA = {"type": "lora"}
ADALORA = {"type": "adalora"}
PROMPT = {"type": "prompt_tuning", "num_virtual_tokens": 4}


def adapter(settings: str = '{"peft_type": "LORA", "base_model_name_or_path": "."}', weights: bool = True) -> Prepare:
    """A folder `a` with this adapter_config.json."""

    def prepare(folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a/adapter_config.json").write_text(settings)
        if weights:
            (folder / "a/adapter_model.safetensors").write_text("weights")

    return prepare


ADAPTERS = [
    bad(
        "two adapter keys and a quantization",
        "error: adapter.rank: unknown key -> valid here: path, type, r, lora_alpha",
        "error: adapter.lora_dropout: 1 should be less than 1",
        "error: quantization: '16bit' is not valid -> did you mean '8bit'?",
        changes={"adapter": {**LORA, "rank": 4, "lora_dropout": 1}, "quantization": "16bit"},
    ),
    bad("no type", "error: adapter.type: is missing -> add it", changes={"adapter": {"r": 4}}),
    bad("a near type", "error: adapter.type: 'loar' is not valid -> did", changes={"adapter": {"type": "loar"}}),
    bad(
        "another type's key",
        "error: adapter.r: unknown key -> valid here: path, type, target_modules, feedforward_modules",
        changes={"adapter": {"type": "ia3", "r": 4}},
    ),
    bad(
        "no such type",
        "error: adapter.type: 'p_tuning' is not valid -> did you mean 'prompt_tuning'?",
        changes={"adapter": {"type": "p_tuning"}},
    ),
    bad(
        "adalora's numbers",
        "error: adapter.beta1: 1 should be less than 1",
        "error: adapter.orth_reg_weight: -0.1 should be greater than or equal to 0",
        "error: adapter.r: unknown key",
        "error: adapter.target_r: 12 is not less than adapter.init_r 12: no ranks would be taken away -> use less",
        changes={"adapter": {**ADALORA, "beta1": 1, "orth_reg_weight": -0.1, "r": 8, "target_r": 12}},
    ),
    bad(
        "adalora's schedule in a run that is too short for it, and would end early",
        "error: adapter.tinit: 2 steps before and adapter.tfinal 2 after leave none of 4 to allot ranks in -> use less",
        "error: train.early_stopping_patience: ends with an earlier model",
        "error: train.load_best_model_at_end: ends with an earlier model",
        changes={
            "adapter": {**ADALORA, "tinit": 2, "tfinal": 2},
            "train": {"max_steps": 4, "eval_steps": 1, "early_stopping_patience": 1, "load_best_model_at_end": True},
        },
    ),
    bad(
        "adalora's schedule in epochs that are too short for it",
        "error: adapter.tinit: 0 steps before and adapter.tfinal 0 after leave none of 1 to allot ranks in",
        changes={"adapter": ADALORA, "train": {"num_train_epochs": 1}},
    ),
    bad(
        "adalora over steps that nobody knows",
        "error: train.max_steps: is needed by adalora, whose ranks go down over the steps of the run",
        changes={"adapter": ADALORA, "train": {"num_train_epochs": 9, "tokens_per_device": 256}},
    ),
    bad(
        "adalora under ZeRO",
        "error: parallel.strategy: adalora weighs and masks whole parameters by their gradients, and ZeRO keeps",
        changes={"adapter": ADALORA, "parallel.strategy": "zero2"},
    ),
    bad(
        "a prompt that does not say how long, of a text that is not there, in packed sequences",
        "error: adapter.num_virtual_tokens: is missing -> say how many",
        "error: adapter.prompt_tuning_init_text: is needed for prompt_tuning_init TEXT -> give the text",
        "error: data.packing: gives the rows of a sequence one prompt_tuning between them",
        changes={"adapter": {"type": "prompt_tuning", "prompt_tuning_init": "TEXT"}, "data.packing": True},
    ),
    bad(
        "a text that nothing starts as",
        "error: adapter.prompt_tuning_init: RANDOM starts from no text, and prompt_tuning_init_text gives one -> use",
        changes={"adapter": {**PROMPT, "prompt_tuning_init_text": "Is this review good?"}},
    ),
    bad(
        "an unknown way to start",
        "error: adapter.prompt_tuning_init: 'text' is not valid -> use one of 'RANDOM', 'TEXT' or 'SAMPLE_VOCAB'",
        changes={"adapter": {**PROMPT, "prompt_tuning_init": "text", "prompt_tuning_init_text": "Is it good?"}},
    ),
    bad(
        "a prompt of no tokens, of a blank text",
        "error: adapter.num_virtual_tokens: 0 should be greater than or equal to 1",
        "error: adapter.prompt_tuning_init_text: ' ' ",
        changes={"adapter": {**PROMPT, "num_virtual_tokens": 0, "prompt_tuning_init_text": " "}},
    ),
    bad(
        "a prefix with everything it cannot be with",
        "error: adapter.num_virtual_tokens: is missing -> say how many",
        "error: adapter.encoder_hidden_size: is the width of a network that prefix_projection asks for -> set",
        "error: data.packing: gives the rows of a sequence one prefix between them",
        "error: gradient_checkpointing: a prefix is a cache of keys and values",
        changes={
            "adapter": {"type": "prefix_tuning", "encoder_hidden_size": 8},
            "data.packing": True,
            "gradient_checkpointing": True,
        },
    ),
    bad(
        "a prefix's unknown key",
        "error: adapter.num_virtual_token: unknown key -> did you mean 'num_virtual_tokens'?",
        changes={"adapter": {"type": "prefix", "num_virtual_token": 4, "num_virtual_tokens": 4}},
    ),
    bad(
        "a projected prefix cannot be trained further",
        "error: model.path: the network that made the prefix of ",
        "error: gradient_checkpointing: a prefix is a cache of keys and values",
        changes={"model.path": "./a", "gradient_checkpointing": True},
        prepare=adapter('{"peft_type": "PREFIX_TUNING", "base_model_name_or_path": ".", "prefix_projection": true}'),
    ),
    bad(
        "a row and a prompt beyond the model's positions, which only the model can tell",
        "error: data.max_length: 509 tokens are more than the 508 that model has positions for beside 4 virtual tokens",
        changes={"adapter": PROMPT, "data.max_length": 509},
        asks=True,
    ),
    bad(
        "a prompt that leaves no positions",
        "error: adapter.num_virtual_tokens: 511 virtual tokens leave no room for a row in model's 512 positions",
        changes={"adapter": {**PROMPT, "num_virtual_tokens": 511}},
        asks=True,
    ),
    bad(
        "targets that are neither a list nor all of them",
        "error: adapter.target_modules: 'all-lin' is not valid -> did you mean 'all-linear'?",
        changes={"adapter": {**LORA, "target_modules": "all-lin"}},
    ),
    bad(
        "targets that the model has not, which only the model can tell",
        "error: adapter.target_modules: LlamaForCausalLM: Target modules",
        changes={"adapter": {**LORA, "target_modules": ["q"]}},
        asks=True,
    ),
    bad(
        "quantized weights without an adapter, and a bad schedule",
        "error: quantization: quantized weights cannot be trained -> give an adapter",
        "error: train.warmup_steps: is longer than max_steps 4",
        changes={"quantization": "4bit", "train.warmup_steps": 9},
    ),
    bad(
        "8 bits under fsdp2",
        "error: parallel.strategy: fsdp2 cannot shard an 8-bit base",
        changes={"quantization": "8bit", "adapter": LORA, "parallel.strategy": "fsdp2"},
    ),
    bad(
        "nothing to go on from",
        "error: adapter.path: nowhere holds no adapter_config.json -> name the folder of an adapter",
        "error: adapter.r: is settled by the adapter at adapter.path -> leave it out",
        changes={"adapter": {**LORA, "path": "nowhere", "r": 4}},
    ),
    bad(
        "an adapter on an adapter",
        "error: adapter: and the model at ",
        changes={"model.path": "./a", "adapter": LORA},
        prepare=adapter(),
    ),
    bad(
        "an adapter without weights",
        "a holds no adapter_model.safetensors -> save the adapter with safetensors",
        changes={"model.path": "./a"},
        prepare=adapter(weights=False),
    ),
    bad(
        "an adapter that has learned tokens, on a base without them, and new tokens for it",
        "error: adapter.path: is not supported with model.new_tokens: what an adapter trains is settled",
        "error: adapter.path: has learned tokens that its base (owner/base) lacks -> name it as model.path",
        changes={"adapter": {"type": "lora", "path": "./a"}, "model.new_tokens": ["<a>"]},
        prepare=adapter(
            '{"peft_type": "LORA", "base_model_name_or_path": "owner/base", "trainable_token_indices": {"wte": [9]}}'
        ),
    ),
    bad(
        "new tokens for an adapter",
        "error: model.new_tokens: are not supported with a model.path that is an adapter (",
        changes={"model.path": "./a", "model.new_tokens": ["<a>"]},
        prepare=adapter('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}'),
    ),
    bad(
        "an adapter whose base is gone",
        "is gone: /nowhere/base -> bring it back",
        changes={"model.path": "./a"},
        prepare=adapter('{"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base"}'),
    ),
]

CASES = {"adapter": ADAPTERS}
