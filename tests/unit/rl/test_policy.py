"""What a policy says of responses is what the model itself says, whatever stands beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scaleup.errors import ScaleupError
from scaleup.models.adapters import SNAPSHOT, drop_snapshot
from scaleup.models.load import enable_gradient_checkpointing
from scaleup.rl.experience import inputs_of
from scaleup.rl.policy import Policy
from scaleup.train.token_head import TokenHead
from tests.unit.rl.conftest import NAMES

TEXTS = ["hello there", "a", "some longer prompt"]
LENGTHS = torch.tensor([4, 6, 1])
TOKENS = torch.arange(10, 28).reshape(3, 6)
TEMPERATURE = 0.7


def inputs(policy: Policy, tokenizer: Any, rows: list[int]) -> dict[str, torch.Tensor]:
    prompts = [tokenizer(TEXTS[row])["input_ids"] for row in rows]
    return inputs_of(prompts, TOKENS[rows], LENGTHS[rows], tokenizer.pad_token_id, policy.is_seq2seq)


def directly(policy: Policy, tokenizer: Any, row: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, entropies and last hidden states of one response, from the plain model without padding."""
    prompt = torch.tensor([tokenizer(TEXTS[row])["input_ids"]])
    response = TOKENS[row : row + 1, : LENGTHS[row]]
    plain = policy.reference or policy.policy
    if policy.is_seq2seq:
        start = torch.full((1, 1), policy.config.decoder_start_token_id)
        output = plain(
            input_ids=prompt, decoder_input_ids=torch.cat([start, response[:, :-1]], 1), output_hidden_states=True
        )
        logits, hidden = output.logits[0], output.decoder_hidden_states[-1][0]
    else:
        output = plain(input_ids=torch.cat([prompt, response], 1), output_hidden_states=True)
        columns = slice(prompt.shape[1] - 1, -1)
        logits, hidden = output.logits[0, columns], output.hidden_states[-1][0, columns]
    log_p = torch.log_softmax(logits / TEMPERATURE, -1)
    return log_p.gather(1, response.T).squeeze(1), -(log_p.exp() * log_p).sum(1), hidden


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest, load: Any) -> tuple[Policy, Any]:
    model, tokenizer = load(request.param)
    policy = Policy(model, TEMPERATURE).eval()
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    return policy, tokenizer


@torch.no_grad()
def test_it_says_what_the_model_says(pair: tuple[Policy, Any]) -> None:
    policy, tokenizer = pair
    logprobs, entropies, values = policy("policy", **inputs(policy, tokenizer, [0, 1, 2]))
    for row, length in enumerate(LENGTHS.tolist()):
        wanted, entropy, hidden = directly(policy, tokenizer, row)
        assert torch.allclose(logprobs[row, :length], wanted, atol=1e-5)
        assert torch.allclose(entropies[row, :length], entropy, atol=1e-5)
        assert torch.allclose(values[row, :length], policy.value_head(hidden).squeeze(1), atol=1e-5)
        assert not logprobs[row, length:].any()
        assert not entropies[row, length:].any()
        assert not values[row, length:].any()


@torch.no_grad()
def test_a_row_alone_is_the_row_among_others(pair: tuple[Policy, Any]) -> None:
    policy, tokenizer = pair
    together = policy("policy", **inputs(policy, tokenizer, [0, 1, 2]))
    for row, length in enumerate(LENGTHS.tolist()):
        alone = policy("policy", **inputs(policy, tokenizer, [row]))
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.allclose(one[0], all_of_them[row, :length], atol=1e-5)


@torch.no_grad()
def test_at_first_it_is_its_reference(pair: tuple[Policy, Any]) -> None:
    policy, tokenizer = pair
    given = inputs(policy, tokenizer, [0, 1, 2])
    assert torch.allclose(policy("policy", **given)[0], policy("reference", **given), atol=1e-5)
    for parameter in policy.policy.parameters():
        parameter.add_(0.1)
    assert (policy("policy", **given)[0] - policy("reference", **given)).abs().max() > 1e-3


def test_a_new_value_is_nothing(load: Any) -> None:
    model, tokenizer = load("tiny-llama")
    policy = Policy(model, 1.0)
    *_, values = policy("policy", **inputs(policy, tokenizer, [0, 1]))
    assert not values.any()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_all_logits(load: Any, name: str) -> None:
    """Of the sum of log-probabilities and entropies, through the head that never has them all."""
    gradients = []
    for plain in (False, True):
        model, tokenizer = load(name)
        policy = Policy(model, TEMPERATURE)
        if plain:
            model.get_output_embeddings().__class__ = torch.nn.Linear
        elif name != "tiny-bart":  # which adds to its logits
            assert isinstance(model.get_output_embeddings(), TokenHead)
        logprobs, entropies, _ = policy("policy", learns_entropy=True, **inputs(policy, tokenizer, [0, 1, 2]))
        (logprobs.sum() + 0.3 * entropies.sum()).backward()
        gradients.append({n: p.grad for n, p in policy.policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for key, gradient in gradients[0].items():
        assert float((gradient - gradients[1][key]).abs().max()) < 1e-5 * largest, key


def test_an_adapter_switched_off_is_the_reference(load: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load("tiny-llama")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    policy = Policy(adapted, TEMPERATURE)
    assert policy.reference is None
    given = inputs(policy, tokenizer, [0, 1, 2])
    before = policy("reference", **given).detach()
    assert torch.equal(before, policy("policy", **given)[0])
    with torch.no_grad():
        for parameter_name, parameter in policy.named_parameters():
            if "lora_B" in parameter_name:
                parameter.add_(0.1)
    assert torch.equal(before, policy("reference", **given))
    assert (before - policy("policy", **given)[0]).abs().max() > 1e-3
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("value_head.") for name in trained)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-t5"])
def test_a_value_model_of_its_own(load: Any, name: str) -> None:
    """It starts as the policy's trunk, and learns apart from it."""
    model, tokenizer = load(name)
    policy = Policy(model, TEMPERATURE, value_model="separate")
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    *_, values = policy("policy", **inputs(policy, tokenizer, [0, 1, 2]))
    _, _, hidden = directly(policy, tokenizer, 1)
    assert torch.allclose(values[1], policy.value_head(hidden).squeeze(1), atol=1e-5)
    values.sum().backward()
    assert all(p.grad is None for p in policy.policy.parameters())
    unused = [n for n, p in policy.value_trunk.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def test_a_head_that_is_not_plain_has_no_trunk_apart(load: Any) -> None:
    model, _ = load("tiny-bart")
    with pytest.raises(ScaleupError, match="value_model: the head of"):
        Policy(model, 1.0, value_model="separate")


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_recomputing_activations_changes_nothing(load: Any, name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, tokenizer = load(name)
        if checkpointing:
            enable_gradient_checkpointing(model)
        policy = Policy(model, TEMPERATURE).train()
        policy("policy", **inputs(policy, tokenizer, [0, 1, 2]))[0].sum().backward()
        gradients.append([p.grad for p in policy.policy.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    assert max(float((one - other).abs().max()) for one, other in zip(*gradients, strict=True)) < 1e-5 * largest


def test_dropout_is_off_in_training_too(load: Any) -> None:
    model, tokenizer = load("tiny-gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    policy = Policy(model, TEMPERATURE).train()
    given = inputs(policy, tokenizer, [0, 1])
    assert torch.equal(policy("policy", **given)[0], policy("policy", **given)[0])


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_an_adapter_trained_before_is_what_the_policy_is_held_to(load: Any, name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model, tokenizer = load(name)
    task = "SEQ_2_SEQ_LM" if name == "tiny-t5" else "CAUSAL_LM"
    settings = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"], task_type=task)
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    policy = Policy(adapted, TEMPERATURE, adapter_is_new=False)
    trained = {key for key, parameter in policy.named_parameters() if parameter.requires_grad}
    given = inputs(policy, tokenizer, [0, 1, 2])
    before = policy("reference", **given).detach()
    assert torch.allclose(before, policy("policy", **given)[0], atol=1e-6)
    with policy.policy.disable_adapter():
        assert (before - policy("policy", **given)[0]).abs().max() > 1e-3
    with torch.no_grad():
        for key, parameter in policy.named_parameters():
            if key in trained:
                parameter.add_(0.1)
    assert torch.equal(before, policy("reference", **given))
    assert (before - policy("policy", **given)[0]).abs().max() > 1e-3
    assert trained == {key for key, parameter in policy.named_parameters() if parameter.requires_grad}

    drop_snapshot(adapted)
    adapted.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_dir()) == []
    again = PeftModel.from_pretrained(load(name)[0], tmp_path)
    assert not any(f".{SNAPSHOT}" in key for key, _ in again.named_parameters())
