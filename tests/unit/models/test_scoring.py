"""A score is a text's own: whatever stands beside it, wherever it is padded, even where pad is eos."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from scaleup.artifacts.classifier_files import SavedReward
from scaleup.config.adapters import LoraAdapter
from scaleup.config.schema import ModelConfig, ScorerConfig
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.models.classifier import classify, head_names, plain_padding
from scaleup.models.load import load_model, load_tokenizer
from scaleup.models.scoring import Reader, Scorer, load_scorer
from scaleup.plan.facts import ModelRequest

CPU = torch.device("cpu")
DECODERS = ("llama", "qwen2", "gpt2")
NAMES = (*DECODERS, "t5", "bart", "bert")
TEXTS = ["a", "good film", "", "it is", "x" * 70, "ends early.", "was it? it was", "é"]


def scorer(name: str, pad_is_eos: bool = False, max_length: int = 48) -> Scorer:
    asked = ModelConfig(path=f"builtin:tiny-{name}", task="sequence_classification")
    facts = model_facts(asked)
    tokenizer = load_tokenizer(asked, facts.location)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    model = load_model(asked, facts)
    for parameter in (p for head in head_names(model) for p in model.get_submodule(head).parameters()):
        torch.nn.init.normal_(parameter, std=0.5)  # scores that differ by more than rounding
    return Scorer(model, Reader(tokenizer, facts.pooling, max_length=max_length), CPU, 4)


def spread(scores: list[float]) -> float:
    return max(scores) - min(scores)


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_batch(name: str, pad_is_eos: bool) -> None:
    if name == "bert" and pad_is_eos:
        pytest.skip("has no eos")
    found = scorer(name, pad_is_eos)
    special = found.reader.tokenizer.eos_token or "[SEP]"
    pairs = [("is it good? ", text) for text in TEXTS] + [("", f"says {special} itself"), ("", f"ends with {special}")]
    alone = [found.score([pair])[0] for pair in pairs]
    assert spread(alone) > 0.05
    assert found.score(pairs) == pytest.approx(alone, abs=1e-5)
    assert found.score(pairs[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    found.batch_size = 100
    assert found.score(pairs) == pytest.approx(alone, abs=1e-5)
    assert found.score([]) == []


@pytest.mark.parametrize("name", DECODERS)
def test_rows_may_be_padded_on_either_side(name: str) -> None:
    found = scorer(name)
    rows = found.reader.ids([("", text) for text in ("a", "good film", "it is so")])
    right = found.reader.batch(rows, CPU)
    width = right["input_ids"].shape[1]
    left = {key: torch.zeros_like(part) for key, part in right.items()}
    for place, row in enumerate(rows):
        left["input_ids"][place, width - len(row) :] = torch.tensor(row)
        left["attention_mask"][place, width - len(row) :] = 1
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        torch.testing.assert_close(classify(found.model, left), classify(found.model, right), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_plain_transformers_scores_the_same(name: str, pad_is_eos: bool, tmp_path: Path) -> None:
    """In batches too, unless the pad token is the eos token: there it refuses them."""
    if pad_is_eos and name not in DECODERS:
        pytest.skip("encoder-decoders read padding as eos tokens, and say so; bert has no eos")
    found = scorer(name, pad_is_eos)
    rows = found.reader.ids([("", text) for text in ("a", "good film", "it is so")])
    expected = torch.tensor(found.score([("", text) for text in ("a", "good film", "it is so")]))
    plain_padding(found.model, found.reader.tokenizer)
    found.model.save_pretrained(tmp_path)
    found.reader.tokenizer.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert plain.config.num_labels == 1
    with torch.no_grad():
        alone = torch.cat([plain(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
        batch = AutoTokenizer.from_pretrained(tmp_path).pad({"input_ids": rows}, return_tensors="pt")
        if pad_is_eos:
            with pytest.raises(ValueError, match="no padding token"):
                plain(**batch)
        else:
            torch.testing.assert_close(plain(**batch).logits[:, 0], expected, atol=1e-5, rtol=0)


@given(text=st.text(max_size=30), length=st.integers(4, 20))
@pytest.mark.parametrize("name", ["gpt2", "t5", "bart", "bert"])
def test_the_last_tokens_are_kept(name: str, text: str, length: int) -> None:
    reader = reader_of(name)
    [ids] = reader.ids([("a prompt, ", text)])
    cut = Reader(reader.tokenizer, reader.pooling, max_length=length).cut(ids)
    assert len(cut) == min(len(ids), length)
    first = {"bart": 1, "bert": 1}.get(name, 0)
    assert cut[:first] == ids[:first]
    assert cut[first:] == ids[len(ids) - len(cut) + first :]
    if reader.pooling == "eos":
        assert ids.count(reader.tokenizer.eos_token_id) == 1


@cache
def reader_of(name: str) -> Reader:
    return scorer(name).reader


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_leaves_it_where_scores_are_read(name: str) -> None:
    lora = LoraAdapter(type="lora", r=2, target_modules="all-linear")
    asked = {"path": f"builtin:tiny-{name}", "task": "sequence_classification"}
    plain, adapted = model_facts(ModelRequest(**asked)), model_facts(ModelRequest(**asked, adapter=lora))
    assert plain.pooling == adapted.pooling == {"t5": "eos", "bart": "eos", "bert": "whole"}.get(name, "last")
    assert adapted.num_trainable_parameters < plain.num_trainable_parameters


def test_a_classifier_rewards_a_label() -> None:
    asked = ModelConfig(path="builtin:tiny-bert-classifier")
    facts = model_facts(asked)
    assert (facts.labels, facts.pooling) == (("negative", "positive"), "whole")
    tokenizer = load_tokenizer(asked, facts.location)
    model = AutoModelForSequenceClassification.from_pretrained(facts.location).eval()
    with torch.no_grad():
        logits = model(**tokenizer("so good", return_tensors="pt")).logits[0]
    for label, score, expected in (
        ("positive", "logit", logits[1]),
        ("negative", "logit", logits[0]),
        ("negative", "probability", logits.softmax(0)[0]),
    ):
        found = load_scorer(ScorerConfig(asked, label=label, score=score), facts, CPU)
        assert found.score([("so ", "good")]) == pytest.approx([float(expected)], abs=1e-6)
    several = facts.model_copy(update={"problem": "multi_label"})  # as Transformers' pipelines take them
    found = load_scorer(ScorerConfig(asked, label="negative", score="probability"), several, CPU)
    assert found.score([("so ", "good")]) == pytest.approx([float(logits.sigmoid()[0])], abs=1e-6)


def test_a_reward_run_says_how_it_is_read(tmp_path: Path) -> None:
    found = scorer("gpt2")
    plain = found.score([("", "Q: a, A: b")])
    found.model.save_pretrained(tmp_path)
    found.reader.tokenizer.save_pretrained(tmp_path)
    saved = SavedReward(template="Q: {prompt}, A: {response}", max_length=32, mean=0.5, std=2.0)
    (tmp_path / "reward.json").write_text(saved.model_dump_json())
    asked = ModelConfig(path=str(tmp_path))
    facts = model_facts(asked)
    assert facts.labels == ("LABEL_0",)
    source = ScorerConfig(asked)
    loaded = load_scorer(source, facts, CPU)
    assert loaded.score([("a", "b")]) == pytest.approx([(plain[0] - 0.5) / 2], abs=1e-6)
    assert loaded.reader.max_length == 32
    raw = load_scorer(replace(source, normalize=False, template="Q: a, A: b{response}"), facts, CPU)
    assert raw.score([("", "")]) == pytest.approx(plain, abs=1e-6)
    (tmp_path / "reward.json").write_text(json.dumps({"std": 0}))
    with pytest.raises(ScaleupError, match=r"reward\.json: cannot be read"):
        load_scorer(source, facts, CPU)


def test_only_the_head_may_be_missing(tmp_path: Path) -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-llama", task="sequence_classification"))
    model = load_model(ModelConfig(path="builtin:tiny-llama"), facts)
    model.config.save_pretrained(tmp_path)
    state = {name: part for name, part in model.state_dict().items() if "layers.1.mlp" not in name}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ScaleupError, match=r"3 weights of LlamaForSequenceClassification are not in its files"):
        load_model(ModelConfig(path=str(tmp_path)), facts.model_copy(update={"location": str(tmp_path)}))


def test_tokenizers_without_what_scoring_needs(tmp_path: Path) -> None:
    for name, told in (
        ("gpt2", "has neither a pad nor an eos token"),
        ("t5", "scores at its eos token 1, the tokenizer's is None"),
    ):
        folder = tmp_path / name
        tokenizer = load_tokenizer(
            ModelConfig(path="x"), model_facts(ModelConfig(path=f"builtin:tiny-{name}")).location
        )
        tokenizer.pad_token = tokenizer.eos_token = None
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text("{}")
        asked = {"path": f"builtin:tiny-{name}", "tokenizer": str(folder), "task": "sequence_classification"}
        with pytest.raises(ScaleupError, match=told) as caught:
            model_facts(ModelConfig(**asked))
        assert caught.value.problems[0].where == "model.tokenizer"


def test_a_decoder_that_pools_for_itself_is_refused(tmp_path: Path) -> None:
    from transformers import CTRLConfig

    CTRLConfig(vocab_size=300, n_embd=32, dff=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    location = model_facts(ModelConfig(path="builtin:tiny-gpt2")).location
    with pytest.raises(ScaleupError, match=r"model\.path: .* \(ctrl\) reads its scores in a way that is not known"):
        model_facts(ModelConfig(path=str(tmp_path), tokenizer=location, task="sequence_classification"))


def test_robertas_positions_begin_behind_its_padding(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(RobertaConfig(vocab_size=300, max_position_embeddings=40, pad_token_id=1, **sizes)).save_pretrained(
        tmp_path
    )
    location = model_facts(ModelConfig(path="builtin:tiny-bart")).location
    asked = ModelConfig(path=str(tmp_path), tokenizer=location, task="sequence_classification")
    facts = model_facts(asked)
    assert facts.max_positions == 38
    tokenizer = load_tokenizer(asked, facts.location)
    found = Scorer(load_model(asked, facts), Reader(tokenizer, facts.pooling, max_length=38), CPU)
    pairs = [("", "x" * 60), ("", "it is")]
    assert found.score(pairs) == pytest.approx([found.score([pair])[0] for pair in pairs], abs=1e-6)
