"""Mistakes about run folders and commands."""

from __future__ import annotations

from tests.e2e.mistakes.case import bad, earlier, folder_of

FOLDERS = [
    bad(
        "another run",
        "runs/reviews): holds another run, which differs in train.learning_rate, train.seed -> choose another name",
        prepare=earlier(**{"train.seed": 7, "train.learning_rate": 1.0}),
    ),
    bad(
        "another run, finished",
        "runs/reviews): holds another run, which differs in data.max_length",
        prepare=earlier(finished=True, **{"data.max_length": 32}),
    ),
    bad(
        "another run, and --resume",
        "runs/reviews): holds another run, which differs in train.seed",
        prepare=earlier(**{"train.seed": 7}),
        command=("run", "config.yaml", "--resume"),
    ),
    bad("this run, unfinished", "runs/reviews): holds this very run, unfinished -> continue it", prepare=earlier()),
    *(
        bad(
            f"a config.yaml that is {kind}",
            "holds a run with an unreadable config.yaml",
            prepare=earlier(config_text=text),
        )
        for kind, text in {
            "a list": "[1]",
            "of another tool": "a: 1",
            "cut off": "stage: sft\nname: [",
            "odd": "\0",
        }.items()
    ),
    bad("a foreign folder", "runs/reviews): exists and is no run folder", prepare=folder_of("runs/reviews/photos")),
    bad(
        "a file in the way",
        "runs/reviews): exists and is no run folder",
        prepare=lambda folder: ((folder / "runs").mkdir(), (folder / "runs/reviews").touch()),
    ),
    bad(
        "runs under a file",
        "rows.jsonl is no folder",
        changes={"runs_dir": "rows.jsonl/runs"},
    ),
    bad(
        "runs behind a link that leads nowhere",
        "runs cannot be written: ",
        prepare=lambda folder: (folder / "runs").symlink_to("/nonexistent/scratch/runs"),
    ),
    bad(
        "plan of runs behind a link that leads nowhere",
        "runs is a link to /nonexistent/scratch/runs, which is not there",
        prepare=lambda folder: (folder / "runs").symlink_to("/nonexistent/scratch/runs"),
        changes={"runs_dir": "runs/mine"},
        command=("plan", "config.yaml"),
    ),
]

COMMANDS = [
    bad("evaluate nothing", "error: runs/none: is no run folder", command=("evaluate", "runs/none")),
    bad(
        "evaluate an unfinished run",
        "error: runs/reviews: is a run that has not finished -> continue it with --resume",
        prepare=earlier(),
        command=("evaluate", "runs/reviews"),
    ),
    bad(
        "evaluate another tool's folder",
        "runs/reviews/config.yaml: cannot be read",
        prepare=earlier(finished=True, config_text="a: 1"),
        command=("evaluate", "runs/reviews"),
    ),
    bad(
        "generate of an sft config",
        "error: config.yaml: has stage sft, not generate -> name a finished run's folder",
        "error: train.sede: unknown key -> did you mean 'seed'?",
        changes={"train.sede": 1},
        command=("generate", "config.yaml"),
    ),
    bad("generate of nothing", "error: runs: is no run folder", command=("generate", "runs", "--prompt", "a")),
    bad(
        "a further node with a bad config",
        "error: train.sede: unknown key -> did you mean 'seed'?",
        changes={"train.sede": 1},
        command=("run", "config.yaml", "--node-rank", "1"),
    ),
    bad("plan, too", "error: train.sede: unknown key", changes={"train.sede": 1}, command=("plan", "config.yaml")),
]

CASES = {"folder": FOLDERS, "command": COMMANDS}
