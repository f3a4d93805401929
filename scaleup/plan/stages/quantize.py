"""This module plans quantization: what cannot be stored in fewer bits is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from scaleup.config.data import RowFormat
from scaleup.config.stages.quantize import QuantizeConfig
from scaleup.errors import Problem
from scaleup.plan.experts import unquantized_experts
from scaleup.plan.facts import ModelFacts
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_folder
from scaleup.plan.rules import is_t5, one_process, t5_in_fp16
from scaleup.plan.stages.base import Rows, StagePlanner


class QuantizePlanner(StagePlanner[QuantizeConfig]):
    shows = "quantize"

    def splits(self, config: QuantizeConfig) -> dict[str, Rows]:
        return {"test": "completions"} if config.data.test else {}

    def problems(self, config: QuantizeConfig, machine: Machine) -> Iterator[Problem]:
        yield from quantize_problems(config, machine)
        yield from super().problems(config, machine)

    def task_problems(
        self, config: QuantizeConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        if config.quantize.method == "float16" and is_t5(facts.model_type):
            yield t5_in_fp16("quantize.method")
        if facts.experts is not None and not config.quantize.is_low_precision:
            yield unquantized_experts("quantize.method", facts, "use bfloat16 or float16")
        yield from super().task_problems(config, facts, where, forms)


def quantize_problems(config: QuantizeConfig, machine: Machine) -> Iterator[Problem]:
    """Yields a method that this model or machine does not go with."""
    settings = config.quantize
    yield from one_process(
        config, "quantization", "results are compared in float32", "quantize.method is what is written"
    )
    if (folder := adapter_folder(config.model.path)) is not None:
        what = f"{folder} is an adapter: its base would be quantized without it"
        yield Problem("model.path", what, "merge it first: scaleup export")
    if settings.group_size is not None and not settings.method.endswith("weight_only"):
        yield Problem("quantize.group_size", f"has no meaning for {settings.method}", "leave it out")
    if settings.skip is not None and settings.is_low_precision:
        what = f"has no meaning for {settings.method}, which all weights are rounded to"
        yield Problem("quantize.skip", what, "leave it out")
    if settings.method == "int4_weight_only":
        has_kernels = importlib.util.find_spec("mslk") is not None
        if device_of(config.parallel, machine) == "cpu" or not has_kernels:
            what = "int4_weight_only needs a CUDA GPU and the package mslk: torchao has no 4-bit kernels for CPUs"
            yield Problem("quantize.method", what, "use int8_weight_only, or a machine that has both")


PLANNER = QuantizePlanner()
