"""A student and its teacher in one module: its loss is what their logits and layers say, its gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from scaleup.config.stages.distill import DistillSettings, HiddenSettings
from scaleup.data.tokenization import FILLER, IGNORE
from scaleup.distill.hidden_states import distance_sum, layer_pairs, layers_of
from scaleup.distill.language import Distillation
from scaleup.distill.train import distillation_loss
from scaleup.models.load import enable_gradient_checkpointing
from tests.unit.data import tiny

NAMES = ["llama", "qwen2", "gpt2", "t5", "bart"]
SETTINGS = DistillSettings(
    divergence="jsd", beta=0.3, temperature=2.0, alpha=0.6, hidden=HiddenSettings(weight=0.4, layers=[(0, 1), (1, 0)])
)


def teacher_of(name: str) -> Any:
    """Another model than the student: its weights are moved a little."""
    teacher = tiny.model(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return teacher


def batch_of(name: str, rows: Any = None) -> Any:
    return tiny.collator(name, tiny.model(name))(tiny.encode(name) if rows is None else rows)


def run(whole: Distillation, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    whole.zero_grad()
    loss = distillation_loss(whole, batch)
    (loss / batch.num_labels).backward()
    return loss.item(), {name: p.grad.clone() for name, p in whole.named_parameters() if p.grad is not None}


def naively(student: Any, teacher: Any, batch: Any) -> torch.Tensor:
    """By the definitions, from all logits, of SETTINGS. Layers are seen one by one."""
    chosen, states = batch.labels != IGNORE, []
    for model in (student, teacher):
        seen: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda m, i, out, s=seen: s.append(out[0] if isinstance(out, tuple) else out))
            for layer in layers_of(model)
        ]
        logits = model(**batch.inputs, use_cache=False).logits[chosen]
        states.append((logits.double(), [each[chosen] for each in seen]))
        for hook in hooks:
            hook.remove()
    (own, own_states), (other, other_states) = states
    q, p = (part.div(2.0).softmax(-1) for part in (own, other.detach()))
    m = 0.3 * p + 0.7 * q
    soft = 0.3 * (p * (p / m).log()).sum() + 0.7 * (q * (q / m).log()).sum()
    hard = F.cross_entropy(own, batch.labels[chosen], reduction="sum")
    pairs = [(own_states[0], other_states[1]), (own_states[1], other_states[0])]
    distance = sum(((one - two.detach()) ** 2).mean(dim=-1).sum() for one, two in pairs) / 2
    return 0.6 * 4 * soft + 0.4 * hard + 0.4 * distance


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_logits_and_layers_say(name: str) -> None:
    batch, plain, teacher = batch_of(name), tiny.model(name), teacher_of(name)
    wanted = naively(plain, teacher, batch)
    (wanted / batch.num_labels).backward()
    whole = Distillation(tiny.model(name), teacher, SETTINGS).train()
    assert whole.is_fused == (name != "bart")
    loss, gradients = run(whole, batch)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    found = {key.removeprefix("student."): gradient for key, gradient in gradients.items()}
    for key, parameter in plain.named_parameters():
        assert (parameter.grad is None) == (key not in found), key
        if parameter.grad is not None:
            assert float((found[key] - parameter.grad).abs().max()) < 2e-5 * largest, key


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_recomputing_activations_changes_nothing(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        student = tiny.model(name)
        if checkpointing:
            enable_gradient_checkpointing(student)
        found.append(run(Distillation(student, teacher_of(name), SETTINGS).train(), batch_of(name)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for key, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][key], atol=1e-6), key


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_without_a_teacher_it_is_fine_tuning(name: str) -> None:
    """The control: alpha 0, to the last bit where the head is fused."""
    from scaleup.train.head_loss import fuse_head
    from scaleup.train.losses import token_loss_sum

    batch, plain = batch_of(name), tiny.model(name)
    fuse_head(plain)
    whole = Distillation(tiny.model(name), teacher_of(name), DistillSettings(alpha=0.0))
    found, wanted = distillation_loss(whole, batch).item(), token_loss_sum(plain, batch).item()
    assert found == wanted if name == "llama" else found == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name: str) -> None:
    settings = DistillSettings(alpha=1.0, hidden=HiddenSettings(loss="cosine"))
    whole = Distillation(tiny.model(name).eval(), tiny.model(name), settings).eval()
    assert abs(distillation_loss(whole, batch_of(name)).item()) < 2e-4


@pytest.mark.parametrize("name", NAMES)
def test_fillers_are_worth_nothing(name: str) -> None:
    whole = Distillation(tiny.model(name), teacher_of(name), SETTINGS).train()
    loss = distillation_loss(whole, batch_of(name, [FILLER, FILLER]))
    loss.backward()
    gradients = [p.grad for p in whole.parameters() if p.grad is not None]
    assert loss.item() == 0.0 and gradients
    assert all(gradient.count_nonzero() == 0 for gradient in gradients)


def test_only_the_student_and_its_projections_are_trained() -> None:
    settings = DistillSettings(hidden=HiddenSettings(projection=True))
    whole = Distillation(tiny.model("llama"), teacher_of("llama"), settings).train()
    assert whole.student.training and not whole.teacher.training
    trained = {name.split(".")[0] for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert trained == {"student", "projections"}
    _, gradients = run(whole, batch_of("llama"))
    assert all(gradients[f"projections.{layer}.weight"].any() for layer in range(2))


def test_widths_that_differ_are_projected() -> None:
    from transformers import AutoModelForCausalLM

    config = tiny.model("llama").config
    config.hidden_size, config.num_hidden_layers = 32, 4
    wider = tiny.model("llama")
    narrow = AutoModelForCausalLM.from_config(config)
    whole = Distillation(narrow, wider, DistillSettings(hidden=HiddenSettings()))
    assert [tuple(part.weight.shape) for part in whole.projections] == [(64, 32)] * 4
    assert run(whole, batch_of("llama"))[0] > 0


def test_a_soft_prompt_moves_no_label() -> None:
    """The student's positions lie behind its virtual tokens, the teacher's do not."""
    from peft import PromptTuningConfig, get_peft_model

    student = get_peft_model(tiny.model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    whole = Distillation(student, teacher_of("llama"), SETTINGS).train()
    loss, gradients = run(whole, batch_of("llama"))
    assert loss > 0 and all("prompt_encoder" in name for name in gradients)


@pytest.mark.parametrize(
    ("student", "teacher", "wanted"), [(2, 2, [0, 1]), (2, 6, [2, 5]), (3, 10, [2, 5, 9]), (20, 30, None)]
)
def test_layers_at_equal_depth_go_together(student: int, teacher: int, wanted: list[int] | None) -> None:
    pairs = layer_pairs(HiddenSettings(), student, teacher)
    assert [own for own, _ in pairs] == list(range(student))
    assert pairs[-1][1] == teacher - 1
    if wanted is not None:
        assert [other for _, other in pairs] == wanted


def test_distances_by_hand() -> None:
    one, other = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]])
    assert distance_sum(one, other, "mse").item() == pytest.approx(9 / 2 + 5 / 2)
    assert distance_sum(one, other, "cosine").item() == pytest.approx((1 - 0.8) + 1)
    assert distance_sum(one[:0], other[:0], "cosine").item() == 0


def padded(model: Any, size: int) -> Any:
    """With embeddings that no token has, which the model deems likely."""
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[259:] = 3.0
    return model


@pytest.mark.parametrize("sizes", [(259, 320), (300, 259), (300, 320)], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_is_left_out(name: str, sizes: tuple[int, int]) -> None:
    """The loss of padded models is that of the same models without, and padding learns nothing from it."""
    settings = SETTINGS.model_copy(update={"alpha": 1.0})
    wanted, gradients = run(Distillation(tiny.model(name), teacher_of(name), settings).train(), batch_of(name))
    models = (padded(model, size) for model, size in zip((tiny.model(name), teacher_of(name)), sizes, strict=True))
    found, others = run(Distillation(*models, settings, 259).train(), batch_of(name))
    assert found == pytest.approx(wanted, rel=1e-6)
    for key, gradient in gradients.items():
        assert (others[key][: len(gradient)] - gradient).abs().max() < 1e-6
        assert not others[key][len(gradient) :].any()


def test_a_teachers_soft_prompt_moves_no_label() -> None:
    """Its outputs at the virtual tokens are no row's."""
    from peft import PromptTuningConfig, get_peft_model

    teacher = get_peft_model(teacher_of("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    student, batch = tiny.model("llama"), batch_of("llama")
    chosen = batch.labels != IGNORE
    with torch.no_grad():
        p = teacher(**batch.inputs, use_cache=False).logits[:, 5:][chosen].double().log_softmax(-1)
        q = student(**batch.inputs, use_cache=False).logits[chosen].double().log_softmax(-1)
    whole = Distillation(student, teacher, DistillSettings(alpha=1.0))
    assert distillation_loss(whole, batch).item() == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-5)
