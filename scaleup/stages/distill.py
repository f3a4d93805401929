"""Distillation: rows -> tokens -> what student and teacher make of them -> the one loop -> the student's folder. Rows
may be of the teacher's own writing, or of the student's, step by step."""

from __future__ import annotations

from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.student import Student, train_student
from scaleup.config.stages import DistillConfig
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.report import finish_training
from scaleup.evaluation.written import with_written_rows
from scaleup.plan.types import Plan


def run(config: DistillConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    done = _train(config, plan, runtime, folder)
    finish_training(
        config, plan, runtime, folder, done.wrapped, done.tokenizer, done.state, done.num_dropped, part=done.part
    )


def _train(config: DistillConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> Student:
    if config.distill.mode == "on_policy":
        from scaleup.compress.on_policy import train_on_policy  # TRL's trainer takes seconds to import

        return train_on_policy(config, plan, runtime, folder)
    if config.distill.mode == "sequence":
        assert plan.teacher is not None
        config = with_written_rows(config, plan.teacher, runtime, folder)
    return train_student(config, plan, runtime, folder)
