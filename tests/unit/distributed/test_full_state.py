"""What is written as the finished model: every weight and buffer, shared ones once."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from scaleup.distributed.engines import ReplicatedEngine
from tests.unit.data import tiny


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_every_weight_and_buffer_once(name: str) -> None:
    model = tiny.model(name)
    state = ReplicatedEngine().full_state(Accelerator(cpu=True), model)
    whole = model.state_dict()
    assert {tensor.data_ptr() for tensor in state.values()} == {tensor.data_ptr() for tensor in whole.values()}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert all(torch.equal(tensor, whole[key]) for key, tensor in state.items())
    assert ("final_logits_bias" in state) == (name == "bart"), "a buffer is part of the model"
