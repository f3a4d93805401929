"""The fused head and loss against the plain ones: same loss, same gradients, and never the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config

from scaleup.data.tokenization import FILLER
from scaleup.train import head_loss
from scaleup.train.head_loss import LossHead, fuse_head, linear_loss_sum
from scaleup.train.losses import token_loss_sum
from tests.unit.data import tiny

FUSED = ["llama", "qwen2", "gpt2", "t5"]


def loss_and_gradients(model: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = token_loss_sum(model, batch)
    (loss / batch.num_labels).backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("only_completion", [True, False])
def test_equal_to_the_plain_head(name: str, only_completion: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "LOGITS_CHUNK", 3)
    plain, fused = tiny.model(name), tiny.model(name)
    fuse_head(fused)
    assert isinstance(fused.get_output_embeddings(), LossHead)
    batch = tiny.collator(name, plain)(tiny.encode(name, completion_only_loss=only_completion))
    assert batch.num_labels > 3, "several chunks"
    (loss, gradients), (other, other_gradients) = loss_and_gradients(plain, batch), loss_and_gradients(fused, batch)
    assert other == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == other_gradients.keys()
    assert max((gradients[key] - other_gradients[key]).abs().max().item() for key in gradients) <= 1e-6


@pytest.mark.parametrize("name", FUSED)
def test_it_is_an_ordinary_head_without_labels(name: str) -> None:
    plain, fused = tiny.model(name).eval(), tiny.model(name).eval()
    fuse_head(fused)
    batch = tiny.collator(name, plain)(tiny.encode(name))
    with torch.no_grad():
        token_loss_sum(fused, batch)
        assert torch.equal(fused(**batch.inputs).logits, plain(**batch.inputs).logits)
    assert fused.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", FUSED)
def test_fillers_are_worth_nothing(name: str) -> None:
    model = tiny.model(name)
    fuse_head(model)
    loss = token_loss_sum(model, tiny.collator(name, model)([FILLER, FILLER]))
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.item() == 0.0 and gradients
    assert all(gradient.count_nonzero() == 0 for gradient in gradients)


def test_models_that_change_their_logits_are_left_as_they_are() -> None:
    """BART adds a bias, Gemma 2 caps them, Cohere scales them: their loss is not that of the head's own output."""
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    configs = [Gemma2Config(**sizes, **heads), CohereConfig(**sizes, **heads, logit_scale=0.5)]
    models = [AutoModelForCausalLM.from_config(config) for config in configs]
    for model in [tiny.model("bart"), *models]:
        fuse_head(model)
        assert type(model.get_output_embeddings()) is torch.nn.Linear, type(model).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_function_with_bias(dtype: torch.dtype, autocast: bool) -> None:
    """700 positions, three chunks. In bfloat16 both round each product: they agree to its precision."""
    torch.manual_seed(0)
    leaves = [torch.randn(700, 16), torch.randn(50, 16) / 3, torch.randn(50)]
    labels = torch.randint(50, (700,))

    def run(fused: bool) -> list[torch.Tensor]:
        hidden, weight, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if fused:
                loss = linear_loss_sum(hidden, weight, bias, labels)
            else:
                loss = F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")
        assert loss.dtype == torch.float32
        (loss / 700).backward()
        return [loss.detach(), *(part.grad.float() for part in (hidden, weight, bias) if part.grad is not None)]

    exact = dtype == torch.float32 and not autocast
    for one, other in zip(run(True), run(False), strict=True):
        assert (one - other).abs().max() <= (1e-6 if exact else 2**-6) * other.abs().max()


def test_frozen_parts_get_no_gradient() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    linear_loss_sum(hidden, weight, None, torch.arange(5)).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not linear_loss_sum(hidden, weight, None, torch.arange(5)).requires_grad


def test_float16_is_for_evaluation_only() -> None:
    """Its gradients need the loss scale, which comes too late here."""
    hidden, weight = torch.randn(5, 4).half(), torch.randn(9, 4).half()
    exact = F.cross_entropy((hidden @ weight.T).float(), torch.arange(5), reduction="sum")
    assert linear_loss_sum(hidden, weight, None, torch.arange(5)).item() == pytest.approx(exact.item(), rel=1e-2)
    with pytest.raises(AssertionError, match="loss scale"):
        linear_loss_sum(hidden, weight.requires_grad_(), None, torch.arange(5))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [part for part in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(part)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


def test_the_logits_of_a_batch_never_exist() -> None:
    hidden, weight = (
        torch.randn(4 * head_loss.LOGITS_CHUNK, 8, requires_grad=True),
        torch.randn(500, 8, requires_grad=True),
    )
    labels = torch.randint(500, (len(hidden),))
    with Largest() as largest:
        linear_loss_sum(hidden, weight, None, labels).backward()
    assert largest.elements == head_loss.LOGITS_CHUNK * len(weight)
