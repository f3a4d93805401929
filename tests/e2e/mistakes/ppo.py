"""Of stage ppo: sizes, prompts, where rewards come from, the two groups."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.e2e.mistakes.case import Case, Prepare, bad

FUNCTION = {"placement": "function", "function": "rewards.py:score"}
PPO: dict[str, Any] = {
    "stage": "ppo",
    "data.validation": None,
    "data.completion": None,
    "train.max_steps": None,
    "ppo": {"num_rollouts": 2, "rollout_batch_size": 8, "max_new_tokens": 8},
    "reward": FUNCTION,
}
CLASSIFIER = """
{"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1,
 "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 259, "max_position_embeddings": 64,
 "id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
"""


def rewards(text: str = "def score(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n") -> Prepare:
    return lambda folder: (folder / "rewards.py").write_text(text)


def classifier(folder: Path) -> None:
    """Its config and tokenizer: all that a plan looks at."""
    (folder / "classifier").mkdir()
    words = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "fine": 2}, unk_token="[UNK]"))
    words.save(str(folder / "classifier/tokenizer.json"))
    (folder / "classifier/tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}'
    )
    (folder / "classifier/config.json").write_text(CLASSIFIER)
    (folder / "classifier/model.safetensors").write_text("weights")


def ppo(name: str, *lines: str, **rest: Any) -> Case:
    """A mistake in a good run of PPO with a function's rewards."""
    changes = {**deepcopy(PPO), **rest.pop("changes", {})}
    return bad(name, *lines, changes=changes, **{"prepare": rewards(), **rest})


def rewarded(*lines: str, name: str, reward: dict[str, Any], **rest: Any) -> Case:
    return ppo(name, *lines, changes={"reward": reward, **rest.pop("changes", {})}, **rest)


PPO_MISTAKES = [
    ppo(
        "no rewards, no rollouts",
        "error: ppo: is missing",
        "error: reward: is missing",
        changes={"ppo": None, "reward": None},
    ),
    ppo(
        "sizes that do not divide",
        "error: ppo.rollout_batch_size: 8 rows do not divide into 3 mini-batches -> use a multiple of 3",
        "error: ppo.response_length_min: 9 is more than ppo.max_new_tokens 8",
        "error: train.warmup_steps: is longer than the run's optimizer steps, 24",
        changes={"ppo.num_mini_batches": 3, "ppo.response_length_min": 9, "train.warmup_steps": 25},
    ),
    ppo(
        "a quantized trunk of its own for the values",
        "error: ppo.value_model: a trunk of its own would be a second copy of the base in 8bit, and none is made",
        changes={"ppo.value_model": "separate", "quantization": "8bit", "adapter": {"type": "lora"}},
    ),
    ppo(
        "a trunk of its own for the values beside rows of new tokens that lora trains",
        "error: ppo.value_model: separate is not supported with model.new_tokens beside lora, whose rows are in the ",
        changes={"ppo.value_model": "separate", "model.new_tokens": ["<a>"], "adapter": {"type": "lora"}},
    ),
    ppo(
        "nothing to gather for rollouts",
        "error: parallel.gather_for_generation: zero2 keeps the weights whole on every rank, so there is nothing to "
        "gather -> leave it out, or use zero3 or fsdp2",
        changes={"parallel.gather_for_generation": True, "parallel.strategy": "zero2", "parallel.num_processes": 2},
    ),
    ppo(
        "mini-batches over too many processes",
        "error: ppo.num_mini_batches: mini-batches of 2 rows do not divide over 4 processes -> "
        "use a ppo.rollout_batch_size that is a multiple of 16",
        changes={"ppo.num_mini_batches": 4, "parallel.num_processes": 4},
    ),
    ppo(
        "data that gives no prompts",
        "error: data.text: gives no prompts to generate from",
        "error: data.validation_fraction: has no meaning for ppo",
        "error: data.packing: has no meaning for ppo",
        "error: data.streaming: prompts are drawn from all rows",
        "error: train.eval_steps: needs held-out prompts",
        changes={
            "data.prompt": None,
            "data.text": "{text}",
            "data.validation_fraction": 0.5,
            "data.packing": True,
            "data.streaming": True,
            "train.eval_steps": 1,
        },
    ),
    ppo("no rows", "error: data.train: is needed by the ppo stage", changes={"data.train": None}),
    *(
        ppo(f"the adapter {kind}", f"error: adapter.type: {reason}", changes={"adapter": {"type": kind, **settings}})
        for kind, reason, settings in (
            ("prompt_tuning", "a policy samples with a cache and trains without", {"num_virtual_tokens": 4}),
            ("prefix", "a policy samples with a cache and trains without", {"num_virtual_tokens": 4}),
            ("adalora", "adalora takes ranks away between the passes", {}),
            ("selective", "reinforcement learning trains a whole policy, or an adapter", {"parameters": ["*"]}),
        )
    ),
    ppo(
        "a quantized policy without an adapter, in fp16 on a CPU",
        "error: quantization: quantized weights cannot be trained",
        "error: mixed_precision: fp16 needs a GPU",
        changes={"quantization": "8bit", "mixed_precision": "fp16"},
    ),
    rewarded("error: reward.model: is needed by reward.placement: group", name="no reward model", reward={}),
    rewarded(
        "error: reward.model: is needed by reward.placement: colocated",
        "error: reward.function: has no meaning for placement colocated",
        "error: reward.parallel: has no meaning for placement colocated",
        "error: reward.timeout_seconds: has no meaning for placement colocated",
        name="a function of a model beside the policy",
        reward={**FUNCTION, "placement": "colocated", "timeout_seconds": 1, "parallel": {"num_processes": 2}},
    ),
    rewarded(
        "error: reward.function: is needed by reward.placement: function",
        "error: reward.url: has no meaning for placement function",
        "error: reward.label: has no meaning for placement function",
        name="a service that is no function",
        reward={"placement": "function", "url": "http://localhost", "label": "a"},
    ),
    rewarded(
        "error: parallel.progress_timeout_seconds: 60 is not more than reward.timeout_seconds 90, which the policy may",
        "error: reward.parallel.progress_timeout_seconds: a reward group that gives no answers is started again after",
        name="a hang sooner than an answer",
        reward={"model": {"path": "builtin:tiny-bert-classifier"}, "label": "positive", "timeout_seconds": 90}
        | {"parallel": {"progress_timeout_seconds": 50}},
        changes={"parallel.progress_timeout_seconds": 60},
    ),
    rewarded("error: reward.url: is needed", name="no address", reward={"placement": "http"}),
    *(
        rewarded(f"error: reward.url: '{url}' is no address", name=f"{url}", reward={"placement": "http", "url": url})
        for url in ("localhost:80", "ftp://localhost/", "http://", "http://host:port/")
    ),
    *(
        rewarded(line, name=name, reward={**FUNCTION, "function": function})
        for name, function, line in (
            ("no name", "rewards.py", "'rewards.py' names no function"),
            ("no file", "reward.py:score", "there is no file reward.py"),
            ("no such function", "rewards.py:scores", "rewards.py defines no scores -> did you mean 'score'?"),
            ("no module", "no_such_module.at_all:score", "there is no module no_such_module.at_all"),
        )
    ),
    ppo("no Python", "rewards.py cannot be read as Python", prepare=rewards("def score(:\n")),
    rewarded(
        "error: reward.model.path: there is no model folder ./m",
        "error: reward.parallel.strategy: zero2 is for training",
        "error: reward.parallel.gather_for_generation: a reward group generates nothing -> leave it out",
        "error: reward.parallel.offload_optimizer: a reward group has no optimizer",
        "error: reward.parallel.offload_parameters: zero2 cannot",
        "error: reward.parallel.num_nodes: a reward group is on one node",
        "error: reward.parallel.max_restarts: a reward group is started again by itself -> use reward.max_restarts",
        "error: reward.mixed_precision: fp16 needs a GPU",
        name="everything wrong with the group",
        reward={
            "model": {"path": "./m"},
            "mixed_precision": "fp16",
            "parallel": {
                "strategy": "zero2",
                "num_processes": 2,
                "num_nodes": 2,
                "gather_for_generation": True,
                "offload_optimizer": True,
                "offload_parameters": True,
                "max_restarts": 1,
            },
        },
    ),
    rewarded(
        "error: reward.parallel.strategy: fsdp2 shards weights, and those of a quantized reward model stay whole",
        "error: reward.model.path: there is no model folder ./m",
        name="a quantized reward model, sharded",
        reward={"model": {"path": "./m"}, "quantization": "8bit", "parallel": {"strategy": "fsdp2"}},
    ),
    ppo(
        "toxicity of nothing",
        "error: evaluation.toxicity_model: is needed for toxicity -> name a sequence classifier",
        "error: evaluation.toxic_label: is needed for toxicity -> name the classifier's label for it, e.g. hate",
        changes={"evaluation.metrics": ["toxicity"]},
    ),
    ppo(
        "toxicity by a classifier that is not there",
        "error: evaluation.toxicity_model.path: there is no model folder ./m",
        "error: evaluation.toxic_label: is needed for toxicity",
        changes={"evaluation": {"metrics": ["toxicity"], "toxicity_model": {"path": "./m"}}},
    ),
    ppo(
        "a toxic label that there is not, beside a label that is rewarded",
        "error: evaluation.toxic_label: 'negativ' is no label of evaluation.toxicity_model -> did you mean 'negative'?",
        "error: reward.label: 'hate' is no label of reward.model -> did you mean 'negative'?",
        changes={
            "reward": {"model": {"path": "classifier"}, "label": "hate"},
            "evaluation": {
                "metrics": ["toxicity"],
                "toxicity_model": {"path": "classifier"},
                "toxic_label": "negativ",
            },
        },
        prepare=classifier,
        asks=True,
    ),
    bad(
        "toxicity in an evaluation, by a language model",
        "error: evaluation.toxicity_model.path: (LlamaForSequenceClassification) has no head that scores texts",
        changes={
            "stage": "evaluate",
            "data.test": "rows.jsonl",
            "data.completion": None,
            "data.train": None,
            "data.validation": None,
            "train": None,
            "evaluation": {
                "metrics": ["toxicity"],
                "toxicity_model": {"path": "builtin:tiny-llama"},
                "toxic_label": "hate",
            },
        },
        asks=True,
    ),
    bad(
        "toxicity beside a metric that needs completions",
        "error: data.prompt: is set without a completion",
        "error: evaluation.toxic_label: is needed for toxicity",
        changes={
            "stage": "evaluate",
            "data.test": "rows.jsonl",
            "data.completion": None,
            "data.train": None,
            "data.validation": None,
            "train": None,
            "evaluation": {"metrics": ["toxicity", "rouge"], "toxicity_model": {"path": "builtin:tiny-bert"}},
        },
    ),
    rewarded(
        "error: ppo.max_new_tokens: 500 and prompts of data.max_length 64 are more than model's 512 positions",
        "error: reward.label: 'positiv' is no label of reward.model -> did you mean 'positive'?",
        "error: reward.max_length: 65 tokens are more than the 64 that reward.model has positions for",
        name="models that are too short, a label that there is not",
        reward={"model": {"path": "classifier"}, "label": "positiv", "max_length": 65},
        changes={"ppo.max_new_tokens": 500},
        prepare=classifier,
        asks=True,
    ),
]

CASES = {"ppo": PPO_MISTAKES}
