"""Mistakes about runs that belong together."""

from __future__ import annotations

import json
from typing import Any

from tests.cli import differing
from tests.e2e.mistakes.case import GOOD, bad, earlier, rows

RUN = {key: value for key, value in GOOD.items() if key != "name"}
ROW = '{"text": "fine", "label": "positive", "good": "a", "bad": "b"}'
REWARD = {
    "stage": "reward",
    "model": {"path": "builtin:tiny-bert"},
    "data": {"train": "rows.jsonl", "chosen": "{good}", "rejected": "{bad}", "max_length": 64},
    "train": {"max_steps": 4},
}
PRUNE = {
    "stage": "prune",
    "model": {"path": "${adapter}"},
    "data": {"train": "rows.jsonl", "prompt": "{text}", "completion": "{label}", "max_length": 64},
    "prune": {"layers": 1, "calibration_rows": 2},
}


def sft(**changes: Any) -> dict[str, Any]:
    return {"config": differing(RUN, {key.replace("__", "."): value for key, value in changes.items()})}


def pipeline(runs: Any, **more: Any) -> str:
    return json.dumps({"pipeline": "chain", "runs": runs, **more})


CASES = {
    "pipelines": [
        bad(
            "each run has its own, and all together have some",
            "error: steps: is no key of a pipeline",
            "error: runs.second: name: its folder would be ",
            "error: runs: third -> fourth -> third is a circle",
            "error: runs.first: model.path: there is no run 'sftt' in the pipeline",
            "error: runs.first: train.max_stps: unknown key -> did you mean 'max_steps'?",
            "error: runs.second: data.train: ${first} is a run's folder, and no rows",
            "error: runs.second: parallel.num_nodes: a pipeline starts runs of one node",
            "error: runs.third: train.learning_rate: ",
            "/rows.jsonl: no row has the column 'txt'",
            "/held.jsonl: no row has the column 'txt'",
            "error: runs.fifth: model.path: ${sixth} is a run of stage evaluate, which makes no model",
            "error: runs.sixth: evaluation.metrics.0: ",
            text=pipeline(
                {
                    "first": sft(name="one", model__path="${sftt}", train__max_stps=3),
                    "second": sft(name="one", data__train="${first}", parallel__num_nodes=2, parallel__num_processes=2),
                    "third": sft(model__path="${fourth}", train__learning_rate=-1),
                    "fourth": sft(model__path="${third}", data__prompt="{txt}"),
                    "fifth": sft(model__path="${sixth}"),
                    "sixth": {
                        "config": {
                            "stage": "evaluate",
                            "model": {"path": "builtin:tiny-llama"},
                            "data": {"test": "held.jsonl", "prompt": "{text}", "completion": "{label}"},
                            "evaluation": {"metrics": ["perplexty"]},
                        }
                    },
                },
                steps=3,
            ),
        ),
        bad(
            "what the models will be that others make",
            "error: runs.writer: model.path: is a sequence classifier (BertForSequenceClassification)",
            "error: runs.pruned: model.path: ",
            "error: runs.judged: evaluation.reward_model.path: (LlamaForSequenceClassification) has no head",
            text=pipeline(
                {
                    "adapter": sft(adapter={"type": "lora", "r": 2}),
                    "reward": {"config": REWARD},
                    "writer": sft(model__path="${reward}"),
                    "pruned": {"config": PRUNE},
                    "judged": {
                        "config": {
                            "stage": "evaluate",
                            "model": {"path": "builtin:tiny-llama"},
                            "data": {"test": "held.jsonl", "prompt": "{text}", "completion": "{label}"},
                            "evaluation": {"metrics": ["reward"], "reward_model": {"path": "${plain}"}},
                        }
                    },
                    "plain": sft(),
                }
            ),
            prepare=rows(ROW, ROW),
            asks=True,
        ),
        bad(
            "no runs",
            "error: runs: is missing",
            text=json.dumps({"pipeline": "chain"}),
        ),
        bad(
            "runs that are asked for and are not there",
            "error: --only: there is no run 'secnd' in the pipeline -> did you mean 'second'?",
            "error: --from: there is no run 'x' in the pipeline",
            "error: --only: and --from exclude each other",
            "error: runs.first: train: is not an override",
            "error: runs.first: train.seed: ",
            "error: runs.second: train.seed: ",
            text=pipeline({"first": sft(train__seed="x"), "second": sft(train__seed="x")}),
            command=("run", "config.yaml", "--only", "secnd", "--from", "x", "--dry-run"),
            overrides=("first.train",),
        ),
        bad(
            "an input that has not finished, and a folder that is no run",
            "error: runs.second: runs_dir/name (",
            text=pipeline({"first": sft(name="reviews"), "second": sft(model__path="${first}")}),
            prepare=lambda folder: (folder / "runs/chain-second/notes").mkdir(parents=True),
        ),
        bad(
            "options of a pipeline for one run",
            "error: --only: is of a pipeline, not of one run",
            "error: --from: is of a pipeline, not of one run",
            "error: --dry-run: is of a pipeline, not of one run",
            command=("run", "config.yaml", "--only", "x", "--from", "x", "--dry-run"),
        ),
        bad(
            "options of one run for a pipeline",
            "error: --node-rank: is of one run, not of a pipeline",
            "error: --accept-changed-data: is of one run, not of a pipeline",
            text=pipeline({"first": sft()}),
            command=("run", "config.yaml", "--node-rank", "1", "--accept-changed-data"),
        ),
        bad(
            "jobs of a pipeline on a target that does not order them",
            "error: --target: torchrun does not order the jobs of a pipeline -> use slurm or kubernetes",
            text=pipeline({"first": sft(cluster={"nodes": 1})}),
            command=("submit", "config.yaml", "--target", "torchrun"),
            asks=True,
        ),
        bad(
            "runs of a pipeline that are for several schedulers",
            "error: --target: its runs are for kubernetes and slurm -> name one",
            text=pipeline(
                {
                    "first": sft(cluster={"nodes": 1, "slurm": {}}),
                    "second": sft(
                        cluster={"nodes": 1, "kubernetes": {"volume_claim": "v"}, "container": {"image": "i"}}
                    ),
                }
            ),
            command=("submit", "config.yaml"),
            asks=True,
        ),
        bad(
            "no number of runs side by side",
            "error: num_parallel: 'two' is no number of runs -> write 1 or more",
            text=pipeline({"first": sft()}, num_parallel="two"),
            command=("run", "config.yaml"),
            asks=True,
        ),
        bad(
            "jobs of a pipeline whose runs do not say what they need",
            "error: runs.first: cluster: is missing",
            "error: runs.second: cluster.nodes: 1 granted, and the run needs 2 (parallel.num_nodes)",
            text=pipeline(
                {
                    "first": sft(),
                    "second": sft(
                        model__path="${first}",
                        cluster={"nodes": 1},
                        parallel__num_nodes=2,
                        parallel__num_processes=2,
                    ),
                }
            ),
            command=("submit", "config.yaml", "--dry-run"),
            asks=True,
        ),
        bad(
            "a sweep of a pipeline",
            "error: --sweep: is of one config, not of a pipeline",
            text=pipeline({"first": sft()}),
            command=("render", "config.yaml", "--sweep", "train.seed=[1,2]"),
        ),
        bad(
            "a pipeline where one run is asked for",
            "error: pipeline: lists several runs, and one is asked for -> run it with scaleup run FILE",
            text=pipeline({"first": sft()}),
            command=("plan", "config.yaml"),
        ),
    ],
    "lineage": [
        bad(
            "a folder that is no run",
            "is no run folder -> name the folder of a run",
            command=("lineage", "runs/none"),
        ),
        bad(
            "a manifest that is none",
            "/runs/reviews/manifest.json: is no manifest that can be read (ValidationError)",
            prepare=earlier(finished=True),
            command=("lineage", "runs/reviews"),
        ),
        bad(
            "a picture of another kind",
            "error: -o: picture.bmp is neither a PNG nor an SVG file",
            prepare=earlier(),
            command=("lineage", "runs/reviews", "-o", "picture.bmp"),
        ),
    ],
}
