"""Mistakes in a config file, and on the command line beside it."""

from __future__ import annotations

from tests.e2e.mistakes.case import GOOD_ROW, PLAIN, M, bad, folder_of, model, rows

FILES = [
    bad("no such file", "nothing.yaml: there is no such config file", command=("run", "nothing.yaml")),
    bad("a folder", "configs: cannot be read: ", command=("run", "configs"), prepare=folder_of("configs")),
    bad("an empty file", "config.yaml: holds no mapping", text=""),
    bad("only comments", "config.yaml: holds no mapping", text="# stage: sft\n"),
    bad("a list", "config.yaml: holds no mapping", text="- stage: sft\n"),
    bad("a sentence", "config.yaml: holds no mapping", text="train the model please\n"),
    bad("not UTF-8", "config.yaml: cannot be read: 'utf-8' codec", text=b"stage: sft\nname: caf\xe9\n"),
    bad("a stray bracket", "config.yaml:2: is not valid YAML", text="stage: sft\ntrain: {max_steps: 3]\n"),
    bad("a tab", "config.yaml:2: is not valid YAML", text="train:\n\tmax_steps: 3\n"),
    bad("a control character", "config.yaml: is not valid YAML", text="name: a\x07b\n"),
    bad("an object", "config.yaml:1: is not valid YAML", text="name: !!python/object/apply:os.getcwd []\n"),
    bad("an impossible date", "config.yaml: is not valid YAML: month must be", text=PLAIN + "runs_dir: 2026-99-99\n"),
    bad("brackets without end", "config.yaml: is not valid YAML: maximum recursion", text="[" * 500),
    bad(
        "a key twice",
        "config.yaml:2: is not valid YAML: the key 'stage' appears twice",
        text="stage: sft\nstage: sft\n",
    ),
    bad(
        "a nested key twice", "config.yaml:1: is not valid YAML: the key 'seed' app", text="train: {seed: 1, seed: 2}\n"
    ),
    bad("a key that YAML reads as true", "config.yaml:1: is not valid YAML: the key True is no text", text="on: 3\n"),
    bad("a number as key", "config.yaml:1: is not valid YAML: the key 1 is no text", text="train: {1: 3}\n"),
    bad("a list as key", "config.yaml:1: is not valid YAML: the key [1] is no text", text="{[1]: 3}\n"),
]

KEYS = [
    bad("an unknown key", "error: traning: unknown key -> did you mean 'train'?", changes={"traning": 3}),
    bad(
        "unknown keys in three sections",
        "error: train.learnin_rate: unknown key -> did you mean 'learning_rate'?",
        "error: model.pth: unknown key -> did you mean 'path'?",
        "error: parallel.zork: unknown key -> valid here: strategy, num_processes",
        changes={"train.learnin_rate": 1, "model.pth": "x", "parallel.zork": 1},
    ),
    bad(
        "an unknown key in a list",
        "error: data.train.1.wieght: unknown key -> did you mean 'weight'?",
        changes={"data.train": ["rows.jsonl", {"path": "more.csv", "wieght": 2}]},
    ),
    bad(
        "no stage",
        "error: stage: is missing -> use one of sft, reward, classify, dpo, ppo, rl, distill, prune, quantize, ",
        changes={"stage": None},
    ),
    bad("an unknown stage", "error: stage: 'stf' is no stage -> did you mean 'sft'?", changes={"stage": "stf"}),
    bad("a list of stages", "error: stage: ['sft'] is no stage -> did you mean 'sft'?", changes={"stage": ["sft"]}),
    bad(
        "only a stage", *(f"error: {key}: is missing" for key in ("name", "model", "data", "train")), text="stage: sft"
    ),
    bad(
        "missing keys, and mistakes elsewhere",
        "error: name: is missing -> add it",
        "error: model.path: is missing -> add it",
        "error: train.max_steps: and train.num_train_epochs exclude each other",
        "rows.jsonl: no row has the column 'text'",
        changes={"name": None, "model": {"task": "auto"}, "train.num_train_epochs": 1},
        prepare=rows('{"label": "positive"}'),
    ),
    bad(
        "a source without a path",
        "error: data.train.0.path: is missing",
        "hold.jsonl' does not exist -> did you mean 'held.jsonl'?",
        changes={"data.train": [{"weight": 2}], "data.validation": "hold.jsonl"},
    ),
    bad("no sources", "error: data.train: [] value should have at least 1 item", changes={"data.train": []}),
    bad("another stage's key", "error: train: unknown key", changes={"stage": "generate", "generation.prompts": ["a"]}),
]

VALUES = [
    bad(
        "wrong types everywhere",
        "error: train.max_steps: 'many' should be a valid integer",
        "error: train.seed: True should be a number, not true or false",
        "error: train.learning_rate: [1] should be a valid number",
        "error: gradient_checkpointing: 'perhaps' should be a valid boolean",
        "error: data.max_length: None should be a valid integer",
        "error: report_to: 'wandb' should be a valid list",
        "error: data.template: 3 should be a valid string",
        changes={
            "train.max_steps": "many",
            "train.seed": True,
            "train.learning_rate": [1],
            "gradient_checkpointing": "perhaps",
            "report_to": "wandb",
            "data.template": 3,
        },
        overrides=("data.max_length=null",),
    ),
    bad("a list for a section", "error: train: [1] should be a valid dictionary", changes={"train": [1]}),
    bad(
        "text for a section", "error: model: 'builtin:tiny-llama' should be a", changes={"model": "builtin:tiny-llama"}
    ),
    bad("an empty section", "error: train: None should be a valid dictionary", overrides=("train=",)),
    bad(
        "a fraction of a step",
        "error: train.max_steps: 2.5 should be a valid integer",
        changes={"train.max_steps": 2.5},
    ),
    bad(
        "out of range",
        "error: train.max_steps: 0 should be greater than or equal to 1",
        "error: train.learning_rate: -1.0 should be greater than 0",
        "error: train.warmup_ratio: 1 should be less than 1",
        "error: train.momentum: nan should be",
        "error: data.max_length: 1 should be greater than or equal to 2",
        "error: data.validation_fraction: 1.5 should be less than 1",
        "error: parallel.num_processes: 0 should be greater than or equal to 1",
        "error: parallel.main_port: 70000 should be less than or equal to 65535",
        "error: generation.top_p: 0 should be greater than 0",
        changes={
            "train.max_steps": 0,
            "train.learning_rate": -1.0,
            "train.warmup_ratio": 1,
            "train.momentum": float("nan"),
            "data.max_length": 1,
            "data.validation_fraction": 1.5,
            "parallel.num_processes": 0,
            "parallel.main_port": 70000,
            "generation.top_p": 0,
        },
    ),
    bad(
        "no such choice",
        "error: mixed_precision: 'fp8' is not valid -> did you mean 'fp16'?",
        "error: train.optimizer: 'adam' is not valid -> did you mean 'adamw'?",
        "error: train.lr_scheduler_type: 'stairs' is not valid -> use one of 'linear'",
        "error: parallel.strategy: 'zero9' is not valid",
        "error: evaluation.metrics.1: 'blue' is not valid -> did you mean 'bleu'?",
        changes={
            "mixed_precision": "fp8",
            "train.optimizer": "adam",
            "train.lr_scheduler_type": "stairs",
            "parallel.strategy": "zero9",
            "evaluation.metrics": ["rouge", "blue"],
        },
    ),
    bad(
        "a name with a slash, and mistakes elsewhere",
        "error: name: 'a/b' should be letters, digits, '.', '_' and '-' only",
        "error: train.momentum: has no meaning for adamw",
        "no/such.jsonl' does not exist",
        changes={"name": "a/b", "train.momentum": 0.9, "data.validation": "no/such.jsonl"},
    ),
    bad("a name that climbs", "error: name: '..' should be letters, digits", changes={"name": ".."}),
    bad("an empty name", "error: name: '' should be letters, digits, '.', '_' and '-' only", changes={"name": ""}),
    bad(
        "the old name of data.too_long",
        "error: data.overlong: is called data.too_long now -> write data.too_long",
        changes={"data.overlong": "drop"},
    ),
    bad("an overlong name", "error: name: 'nn", changes={"name": "n" * 101}),
    bad(
        "paths nobody can open",
        "error: model.path: '~nobody-here/m' is no usable path: Could not determine home directory",
        "is no usable path: File name too long",
        "error: data.root: 'a\\x00b' is no usable path: it holds a null character",
        changes={"model.path": "~nobody-here/m", "runs_dir": "r" * 300, "data.root": "a\0b"},
    ),
]

OVERRIDES = [
    bad(
        "no equals sign",
        "error: train.max_steps: is not an override -> write key=value",
        overrides=("train.max_steps",),
    ),
    bad("no key", "error: =3: is not an override", overrides=("=3",)),
    bad("an empty part", "error: train..seed=3: is not an override", overrides=("train..seed=3",)),
    bad(
        "templates without quotes",
        """error: data.prompt: '{text}' should be a valid string, and without quotes YAML reads a mapping""",
        """error: data.completion: the value '{label} it is' is not valid YAML""",
        overrides=("data.prompt={text}", "data.completion={label} it is"),
    ),
    bad(
        "bad YAML",
        "error: train.seed: the value '[1' is not valid YAML -> mend it, or quote it as text: train.seed='\"[1\"'",
        overrides=("train.seed=[1",),
    ),
    bad("a bad date", "error: name: the value '2026-99-99' is not valid YAML", overrides=("name=2026-99-99",)),
    bad("a key twice", "error: train: the value '{seed: 1, seed: 2}' is", overrides=("train={seed: 1, seed: 2}",)),
    bad(
        "a place beyond the list",
        "error: data.train.3.weight: the list has no place '3' -> it has places 0 to 0",
        changes={"data.train": ["rows.jsonl"]},
        overrides=("data.train.3.weight=2",),
    ),
    bad(
        "a word as place",
        "error: data.train.first.weight: the list has no place 'first'",
        changes={"data.train": ["rows.jsonl"]},
        overrides=("data.train.first.weight=2",),
    ),
    bad(
        "a key of text",
        "error: data.train.0.weight: 'rows.jsonl' has no key 'weight'",
        changes={"data.train": ["rows.jsonl"]},
        overrides=("data.train.0.weight=2",),
    ),
    bad("a key of the stage", "error: stage: {'name': 'sft'} is no stage", overrides=("stage.name=sft",)),
    bad(
        "several, beside the file's own",
        "error: nonsense: is not an override",
        "error: train.lr: unknown key",
        "error: train.seed: -1 should be greater than or equal to 0",
        "error: train.warmup_steps: and train.warmup_ratio exclude each other",
        overrides=("nonsense", "train.lr=1", "train.seed=-1"),
        changes={"train.warmup_steps": 1, "train.warmup_ratio": 0.1},
    ),
]

TOGETHER = [
    bad(
        "neither steps nor epochs",
        "error: train.max_steps: is needed -> give max_steps or num_train_epochs",
        changes={"train.max_steps": None},
    ),
    bad(
        "steps and epochs",
        "error: train.max_steps: and train.num_train_epochs exclude each other",
        changes={"train.num_train_epochs": 1},
    ),
    bad(
        "a global batch that does not divide",
        "error: train.global_batch_size: 10 rows do not divide by per_device_train_batch_size 2 x 2 processes -> use a "
        "multiple of 4",
        changes={"train.global_batch_size": 10, "parallel.num_processes": 2},
    ),
    bad(
        "a global batch smaller than one pass",
        "error: train.global_batch_size: 1 rows do not divide by",
        changes={"train.global_batch_size": 1},
    ),
    bad(
        "a global batch that is not the product",
        "error: train.global_batch_size: 8 rows are not per_device_train_batch_size 2 x 1 processes x "
        "gradient_accumulation_steps 3 -> use 6",
        changes={"train.global_batch_size": 8, "train.gradient_accumulation_steps": 3},
    ),
    bad(
        "a parallel section that fits nothing",
        "error: parallel.strategy: 'single' is one process, and num_processes is 3",
        "error: parallel.num_processes: 3 processes do not divide over 2 nodes",
        changes={"parallel": {"strategy": "single", "num_processes": 3, "num_nodes": 2}},
    ),
    bad(
        "a hang that a collective would end first",
        "error: parallel.progress_timeout_seconds: 600 is not less than timeout_seconds 600: a collective would end "
        "first, and name no rank -> use at most 540, or raise timeout_seconds",
        changes={"parallel": {"progress_timeout_seconds": 600, "timeout_seconds": 600}},
    ),
    bad(
        "less than a beat takes",
        "error: parallel.heartbeat_timeout_seconds: 5 should be greater than or equal to 10",
        changes={"parallel.heartbeat_timeout_seconds": 5},
    ),
    bad(
        "GPUs on a machine without",
        "error: parallel.num_processes: 2 processes need 2 GPUs, and this machine has 0",
        changes={"parallel": {"device": "cuda", "num_processes": 2}},
    ),
    bad("fp16 on the CPU", "error: mixed_precision: fp16 needs a GPU", changes={"mixed_precision": "fp16"}),
    bad(
        "the built-in T5 in fp16",
        "error: mixed_precision: T5 models overflow in fp16",
        "error: parallel.num_processes: 1 processes need 1 GPUs",
        changes={"mixed_precision": "fp16", "model.path": "builtin:tiny-t5", "parallel.device": "cuda"},
    ),
    bad(
        "a T5 folder in fp16",
        "error: mixed_precision: T5 models overflow in fp16",
        "error: mixed_precision: fp16 needs a GPU",
        changes={"mixed_precision": "fp16", **M},
        prepare=model('{"model_type": "t5"}', "model.safetensors"),
    ),
    bad(
        "evaluation without validation rows",
        "error: train.eval_steps: needs validation rows",
        "error: train.early_stopping_patience: needs validation rows",
        "error: train.load_best_model_at_end: needs validation rows",
        changes={
            "data.validation": None,
            "train.eval_steps": 2,
            "train.early_stopping_patience": 1,
            "train.load_best_model_at_end": True,
        },
    ),
    bad(
        "early stopping without evaluation",
        "error: train.early_stopping_patience: needs evaluation during training",
        "error: train.load_best_model_at_end: needs evaluation during training",
        changes={"train.early_stopping_patience": 1, "train.load_best_model_at_end": True},
    ),
    bad(
        "warm-ups",
        "error: train.warmup_steps: and train.warmup_ratio exclude each other",
        "error: train.warmup_steps: is longer than max_steps 4",
        changes={"train.warmup_steps": 5, "train.warmup_ratio": 0.5},
    ),
    bad("momentum of AdamW", "error: train.momentum: has no meaning for adamw", changes={"train.momentum": 0.9}),
    bad(
        "two ways to validate",
        "error: data.validation_fraction: and data.validation exclude each other",
        changes={"data.validation_fraction": 0.5},
    ),
    bad(
        "a share of a single row held out",
        "error: data.validation_fraction: rows.jsonl has one row, of which none can be held out",
        changes={"data.validation": None, "data.validation_fraction": 0.5},
        prepare=rows(GOOD_ROW),
    ),
    bad(
        "a stream in epochs, with a share held out",
        "error: data.validation_fraction: cannot be drawn from streamed rows",
        "error: train.num_train_epochs: streamed rows are not counted beforehand",
        changes={
            "data.streaming": True,
            "data.validation": None,
            "data.validation_fraction": 0.5,
            "train.max_steps": None,
            "train.num_train_epochs": 2,
        },
    ),
    bad(
        "accuracy without labels",
        "error: evaluation.labels: is needed for accuracy",
        changes={"evaluation.metrics": ["accuracy"]},
    ),
    bad(
        "metrics that nothing here can compute",
        "error: evaluation.labels: holds one label, which is always the likeliest",
        "error: evaluation.metrics: names rouge twice",
        "error: evaluation.toxicity_model: is needed for toxicity",
        "error: evaluation.toxic_label: is needed for toxicity",
        "error: evaluation.reward_model: is needed for reward",
        "error: evaluation.metrics: there is no metric at ./metrics/own",
        "error: evaluation.metrics: evaluate:sacrebleu is code of a hub, and would run here",
        "error: evaluation.metrics: there is no file no/such.py",
        changes={
            "evaluation.metrics": [
                "rouge",
                "likelihood_accuracy",
                "rouge",
                "toxicity",
                "reward",
                "evaluate:./metrics/own",
                "evaluate:sacrebleu",
                "no/such.py:words",
            ],
            "evaluation.labels": ["positive"],
        },
    ),
    bad(
        "a divergence from nothing",
        "error: evaluation.reference: is needed for kl where there is no baseline -> name a model",
        changes={
            "stage": "evaluate",
            "train": None,
            "data.train": None,
            "data.validation": None,
            "data.test": "held.jsonl",
            "evaluation.metrics": ["kl"],
        },
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "a reward of no such label, and probabilities of other tokens",
        "error: evaluation.reward_label: 'positve' is no label of evaluation.reward_model -> did you mean 'positive'?",
        "error: model: has other tokens than evaluation.reference, and kl compares probabilities of the same ones",
        changes={
            "stage": "evaluate",
            "train": None,
            "data.train": None,
            "data.validation": None,
            "data.test": "held.jsonl",
            "evaluation.metrics": ["kl", "reward"],
            "evaluation.reference": {"path": "builtin:tiny-t5"},
            "evaluation.reward_model": {"path": "builtin:tiny-bert-classifier"},
            "evaluation.reward_label": "positve",
        },
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "one label twice",
        "error: evaluation.labels: names one twice",
        changes={"evaluation.metrics": ["f1"], "evaluation.labels": ["positive", "positive"]},
    ),
    bad(
        "answers of plain text, greedy sampling",
        "error: evaluation.metrics: rouge needs answers, and data.text has none",
        "error: generation.top_p: has no meaning for greedy decoding",
        changes={
            "data.prompt": None,
            "data.completion": None,
            "data.text": "{text}",
            "evaluation.metrics": ["perplexity", "rouge"],
            "generation.top_p": 0.5,
        },
    ),
    bad(
        "trackers that are not installed",
        "error: report_to: the tracker 'clearml' is not installed -> pip install clearml",
        "error: report_to: the tracker 'dvclive' is not installed",
        changes={"report_to": ["clearml", "dvclive"]},
    ),
    bad("no training rows", "error: data.train: is needed by the sft stage", changes={"data.train": None}),
    bad(
        "no test rows to evaluate on",
        "error: data.test: is needed by the evaluate stage",
        changes={"stage": "evaluate", "train": None},
        command=("evaluate", "config.yaml"),
    ),
]

CASES = {"file": FILES, "keys": KEYS, "values": VALUES, "override": OVERRIDES, "together": TOGETHER}
