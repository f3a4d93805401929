"""Log-probabilities and entropies of tokens without all logits: as autograd has them of all logits, and as TRL's kernel
has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scaleup.train import token_head
from scaleup.train.token_head import linear_logprobs

N, WIDTH, VOCABULARY, CHUNK = 23, 16, 301, 7


def parts(bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)][: 2 + bias]
    return tuple(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)


def all_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    log_p = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias).float() / temperature, dim=1)
    return log_p.gather(1, tokens[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


def trl_kernel(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from trl.kernels import ChunkedLogProbFunction

    logprobs, entropies, *_ = ChunkedLogProbFunction.apply(
        hidden, weight, bias, tokens, temperature, 64, None, 1.0, ("entropy",)
    )
    return logprobs, entropies


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_head, "LOGITS_CHUNK", CHUNK)


@pytest.mark.parametrize("other", [all_logits, trl_kernel])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("frozen", [False, True])
def test_values_and_gradients_are_those_of(other: Any, entropy_coef: float, has_bias: bool, frozen: bool) -> None:
    tokens, scale = torch.arange(N) * 13 % VOCABULARY, torch.linspace(-1, 2, N)
    found = []
    for function in (linear_logprobs, other):
        hidden, weight, *rest = parts(has_bias)
        bias = rest[0] if has_bias else None
        for part in (weight, *rest):
            part.requires_grad_(not frozen)
        learns = {"learns_entropy": bool(entropy_coef)} if function is linear_logprobs else {}
        logprobs, entropies = function(hidden, weight, bias, tokens, 0.7, **learns)
        loss = (scale * logprobs).sum()
        if entropy_coef:
            loss = loss + entropy_coef * (scale * entropies).sum()
        loss.backward()
        found.append([logprobs, entropies, hidden.grad, weight.grad, *(part.grad for part in rest)])
    for one, another in zip(*found, strict=True):
        assert (one is None) == (another is None)
        assert one is None or torch.allclose(one, another, atol=1e-5, rtol=1e-5)


def test_entropies_alone_have_a_gradient() -> None:
    tokens = torch.zeros(N, dtype=torch.long)
    gradients = []
    for function in (linear_logprobs, all_logits):
        hidden, weight, bias = parts()
        learns = {"learns_entropy": True} if function is linear_logprobs else {}
        function(hidden, weight, bias, tokens, 1.0, **learns)[1].sum().backward()
        gradients.append([part.grad for part in (hidden, weight, bias)])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_frozen_parts_get_no_gradient() -> None:
    hidden, weight, bias = parts()
    weight.requires_grad_(False)
    linear_logprobs(hidden, weight, bias, torch.zeros(N, dtype=torch.long))[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert bias.grad is not None


def test_products_are_in_autocasts_type_and_the_rest_in_float32() -> None:
    hidden, weight, bias = parts()
    tokens = torch.zeros(N, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropies = linear_logprobs(hidden, weight, bias, tokens)
    assert logprobs.dtype == entropies.dtype == torch.float32
    low = [part.to(torch.bfloat16) for part in (hidden, weight, bias)]
    wanted = all_logits(*low, tokens, 1.0)  # type: ignore[arg-type]
    assert torch.allclose(logprobs, wanted[0], atol=0.02)
    assert not torch.equal(logprobs, linear_logprobs(hidden, weight, bias, tokens)[0])
    logprobs.sum().backward()
    assert all(part.grad is not None and part.grad.dtype == torch.float32 for part in (hidden, weight, bias))


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_never_more_logits_than_a_chunk() -> None:
    hidden, weight, bias = parts()
    with Largest() as largest:
        logprobs, entropies = linear_logprobs(hidden, weight, bias, torch.zeros(N, dtype=torch.long), 1.0, True)
        (logprobs + entropies).sum().backward()
    assert largest.elements == weight.numel()  # of which CHUNK x VOCABULARY logits are fewer
    assert CHUNK * VOCABULARY < weight.numel() < N * VOCABULARY


class Products(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mm" in func.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("frozen", "wanted"), [(False, 4), (True, 2)])
def test_a_frozen_heads_logits_are_computed_once(frozen: bool, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, and the gradient by hidden states; else the logits once more, and the gradient by the weight."""
    monkeypatch.setattr(token_head, "LOGITS_CHUNK", N)
    hidden, weight = parts(bias=False)
    weight.requires_grad_(not frozen)
    with Products() as products:
        linear_logprobs(hidden, weight, None, torch.zeros(N, dtype=torch.long))[0].sum().backward()
    assert products.count == wanted


def test_no_tokens_give_a_gradient_of_zero() -> None:
    _, weight, bias = parts()
    hidden = torch.empty(0, WIDTH, requires_grad=True)
    linear_logprobs(hidden, weight, bias, torch.zeros(0, dtype=torch.long))[0].sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()
