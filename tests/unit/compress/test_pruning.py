"""What is chosen by scores, and scores by their closed forms."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
)

from scaleup.compress.calibration import Statistics, calibrate, in_batches, matrices_of
from scaleup.compress.cut import cut_parts, make_zeros, share_of_zeros
from scaleup.compress.pruning import (
    drop_span,
    evenly_spaced,
    feature_scores,
    head_scores,
    keep_mask,
    keep_two_of_four,
    top_dims_per_head,
    top_indices,
    weight_scores,
)
from scaleup.config.stages.prune import PruneSettings
from scaleup.data.collate import Batch, causal_collator, seq2seq_collator
from scaleup.data.labelled import labelled_collator
from scaleup.data.tokenization import LabelledTokens, Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.models.architecture import architecture_of
from scaleup.models.classifier import pool_by_mask

ALONE = cast(
    Runtime,
    SimpleNamespace(rank=0, world=1, device=torch.device("cpu"), sum_tensor=lambda tensor: tensor.double()),
)
"""One process, which adds up nothing."""


def llama(layers: int = 4) -> Any:
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def t5() -> Any:
    config = T5Config(vocab_size=97, d_model=48, d_kv=12, d_ff=40, num_layers=3, num_heads=4, decoder_start_token_id=0)
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


def rows(lengths: tuple[int, ...] = (5, 9, 3, 7)) -> list[Tokens]:
    chance = np.random.default_rng(0)
    return [Tokens(*chance.integers(3, 97, (2, length)).astype(np.int32)) for length in lengths]


def batches(size: int, pad: int = 0) -> list[Batch]:
    return in_batches(rows(), causal_collator(pad), size)


def settings(**values: Any) -> PruneSettings:
    return PruneSettings.model_validate(values)


def measured(model: Any, size: int, pad: int = 0, span: int = 1) -> Statistics:
    return calibrate(ALONE, model, batches(size, pad), {"decoder": span}, list(matrices_of(model)))


def test_padding_is_left_out() -> None:
    model = llama()
    apart, together = measured(model, 1), measured(model, 4, pad=50)
    for one, other in zip(
        [apart.distances["decoder"].influence, *apart.input_norms.values()],
        [together.distances["decoder"].influence, *together.input_norms.values()],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


CLASSIFIERS: dict[str, Any] = {
    "bert": BertConfig(vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, intermediate_size=40),
    "gpt2": GPT2Config(vocab_size=97, n_embd=48, n_layer=3, n_head=6, n_positions=64),
    "t5": T5Config(vocab_size=97, d_model=48, d_kv=12, d_ff=40, num_layers=3, num_heads=4, decoder_start_token_id=0),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_padding_is_left_out_of_a_classifier_s_rows_in_each_stack(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CLASSIFIERS[name]).eval()
    pool_by_mask(model)
    spans = {stack.name: 1 for stack in architecture_of(model).stacks}
    texts = [LabelledTokens(np.append(row.input_ids, 1).astype(np.int32), 0) for row in rows()]  # 1: eos
    apart, together = (
        calibrate(ALONE, model, in_batches(texts, labelled_collator(50, 1), size), spans, list(matrices_of(model)))
        for size in (1, 4)
    )
    assert apart.distances.keys() == spans.keys() and len(apart.input_norms) == len(matrices_of(model))
    for stack in spans:
        one, other = apart.distances[stack].influence, together.distances[stack].influence
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for matrix, norm in apart.input_norms.items():
        torch.testing.assert_close(norm, together.input_norms[matrix], rtol=1e-4, atol=1e-6)
    assert not any("classif" in matrix or "score" in matrix or "pooler" in matrix for matrix in apart.input_norms)


@torch.no_grad()
@pytest.mark.parametrize("span", [1, 2])
def test_distances_are_those_of_hidden_states_before_the_final_norm(span: int) -> None:
    model = llama()
    found = measured(model, 1, span=span).distances["decoder"]
    last: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda module, given: last.append(given[0]))
    cosines = []
    for batch in batches(1):
        states = model(**batch.inputs, output_hidden_states=True).hidden_states
        states = [*states[:-1], last.pop()]
        pairs = zip(states, states[span:], strict=False)
        cosines.append(torch.stack([torch.cosine_similarity(a.double(), b.double(), dim=-1)[0] for a, b in pairs]))
    handle.remove()
    cosine = torch.cat(cosines, dim=1)
    torch.testing.assert_close(found.influence, 1 - cosine.mean(1), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.angular, (cosine.arccos() / torch.pi).mean(1), rtol=1e-5, atol=1e-8)


@torch.no_grad()
def test_norms_are_those_of_a_matrix_s_inputs() -> None:
    model = t5()
    shift = model.prepare_decoder_input_ids_from_labels
    data = in_batches(rows(), seq2seq_collator(0, shift), 4)
    found = calibrate(ALONE, model, data, {}, list(matrices_of(model))).input_norms
    total = {name: torch.zeros_like(norm) for name, norm in found.items()}
    for row in rows():  # alone, so that nothing is padded
        seen: dict[str, torch.Tensor] = {}

        def remember(name: str, seen: dict[str, torch.Tensor] = seen) -> Any:
            return lambda module, given: seen.update({name: given[0][0].double()})

        handles = [module.register_forward_pre_hook(remember(name)) for name, module in matrices_of(model).items()]
        [batch] = in_batches([row], seq2seq_collator(0, shift), 1)
        model(**batch.inputs)
        for handle in handles:
            handle.remove()
        for name, states in seen.items():
            total[name] += states.square().sum(0)
    for name, norm in found.items():
        torch.testing.assert_close(norm, total[name].sqrt(), rtol=1e-4, atol=1e-6)
    assert not any("lm_head" in name or "shared" in name or "relative" in name for name in found)


def test_a_layer_that_does_nothing_has_no_influence_and_goes() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
        ids = torch.arange(3, 12)[None]
        before = model(ids).logits
        influence = measured(model, 2).distances["decoder"].influence
        assert influence[2] == pytest.approx(0, abs=1e-12) and (influence[[0, 1, 3]] > 1e-3).all()
        for score in ("block_influence", "angular"):
            again = llama()
            again.load_state_dict(model.state_dict())
            kept = cut_parts(ALONE, again, settings(layers=3, layer_score=score), batches(2))
            assert kept == {"decoder": [0, 1, 3]}
            torch.testing.assert_close(again(ids).logits, before)


def test_columns_and_groups_that_give_nothing_go() -> None:
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, 7:15] = 0
            layer.self_attn.o_proj.weight[:, 16:32] = 0  # heads 2 and 3, of group 1
        ids = torch.arange(3, 12)[None]
        before = model(ids).logits
        cut_parts(ALONE, model, settings(intermediate_size=32, num_key_value_heads=2), batches(2))
        torch.testing.assert_close(model(ids).logits, before)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (32, 48)


def test_t5_keeps_the_same_heads_in_a_stack_and_any_in_cross_attention() -> None:
    model = t5()
    with torch.no_grad():
        for stack, silent in ((model.encoder, 1), (model.decoder, 2)):
            for block in stack.block:
                block.layer[0].SelfAttention.o.weight[:, 12 * silent : 12 * silent + 12] = 0
        for place, block in enumerate(model.decoder.block):
            block.layer[1].EncDecAttention.o.weight[:, 12 * place : 12 * place + 12] = 0
        shift = model.prepare_decoder_input_ids_from_labels
        data = in_batches(rows(), seq2seq_collator(0, shift), 2)
        inputs = in_batches(rows()[:1], seq2seq_collator(0, shift), 1)[0].inputs
        before = model(**inputs).logits
        cut_parts(ALONE, model, settings(num_key_value_heads=3), data)
        torch.testing.assert_close(model(**inputs).logits, before)
    assert (model.config.num_heads, model.config.d_kv) == (3, 12)


def test_wanda_is_the_weight_times_the_norm_of_its_input_by_row() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [4.0, 3.0, -2.0, 1.0]])
    norms = torch.tensor([10.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    scores = weight_scores(weight, norms)
    assert scores.tolist() == [[10, 2, 6, 2], [40, 3, 4, 0.5]]
    assert keep_mask(scores, 0.5).tolist() == [[True, False, True, False], [True, False, True, False]]
    assert weight_scores(weight, None).tolist() == weight.abs().tolist()
    assert keep_mask(weight_scores(weight, None), 0.3).sum(1).tolist() == [3, 3]  # floor(1.2) goes


def test_two_of_four() -> None:
    scores = torch.rand(7, 24, generator=torch.Generator().manual_seed(0))
    mask = keep_two_of_four(scores)
    assert (mask.reshape(7, 6, 4).sum(2) == 2).all()
    kept, gone = (scores.reshape(-1, 4)[each.reshape(-1, 4)].reshape(-1, 2) for each in (mask, ~mask))
    assert (kept.min(1).values > gone.max(1).values).all()
    assert keep_two_of_four(torch.ones(1, 4)).sum() == 2


def test_scores_of_columns_heads_and_features() -> None:
    weight = torch.tensor([[3.0, 0.0, 1.0, 0.0], [4.0, 2.0, 0.0, 0.0]])
    features = feature_scores(torch.tensor([1.0, 1.0, 7.0, 9.0], dtype=torch.float64), weight)
    assert features.tolist() == [5, 2, 7, 0]
    assert head_scores(features, 2).tolist() == pytest.approx([29**0.5, 7])
    assert top_dims_per_head(features, 2, 1).tolist() == [[0], [0]]


def test_which_layers() -> None:
    assert top_indices(torch.tensor([0.5, 0.1, 0.4, 0.1]), 3) == [0, 1, 2], "of equal scores the first is kept"
    assert drop_span(torch.tensor([0.5, 0.2, 0.3]), 5, 2) == [0, 4]
    assert evenly_spaced(30, 4) == [0, 10, 19, 29]
    assert evenly_spaced(7, 6)[0] == 0 and len(set(evenly_spaced(7, 6))) == 6 and evenly_spaced(5, 1) == [0]


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_zeros_are_made_in_layers_alone(score: str, pattern: str) -> None:
    model = llama()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    make_zeros(ALONE, model, settings(sparsity=0.5, pattern=pattern, sparsity_score=score), batches(2))
    assert share_of_zeros(model) == pytest.approx(0.5, abs=1e-3)
    for name, parameter in model.named_parameters():
        if name.endswith("proj.weight"):
            stays = parameter != 0
            assert torch.equal(parameter[stays], before[name][stays])
            if pattern == "2:4":
                assert (stays.reshape(-1, 4).sum(1) == 2).all()
        else:
            assert torch.equal(parameter, before[name])


def test_a_conv1d_is_pruned_by_its_outputs() -> None:
    """GPT-2 stores matrices as (in, out)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2)).eval()
    make_zeros(ALONE, model, settings(sparsity=0.5, pattern="2:4", sparsity_score="wanda"), batches(2))
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert weight.shape == (16, 64) and ((weight.T.reshape(64, 4, 4) != 0).sum(2) == 2).all()
