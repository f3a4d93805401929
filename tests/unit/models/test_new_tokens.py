"""New tokens: the tokenizer has them, and embeddings and head have the rows that Transformers would give them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, LlamaForCausalLM

from scaleup.config.adapters import LoraAdapter
from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.distributed.deferred import Deferred, value_of
from scaleup.errors import ScaleupError
from scaleup.models.adapted import load_finished
from scaleup.models.adapters import adapt, save_adapter
from scaleup.models.load import auto_class, load_model, load_tokenizer
from scaleup.models.new_tokens import grow_vocabulary
from scaleup.models.sources import materialize
from scaleup.plan.facts import ModelRequest

LORA = LoraAdapter(type="lora", r=2, lora_alpha=4)
TOKENS = ["<tool>", "<call> of two words", "Ünïcode▁"]


def grown(path: str, **options: Any) -> tuple[Any, Any]:
    """The model with the tokens, and its facts."""
    config = ModelConfig(path=path, new_tokens=TOKENS)
    facts = model_facts(config)
    return load_model(config, facts, **options), facts


def with_tied_head(folder: Path) -> str:
    """A T5 whose head is its embeddings, as the first ones' is: the built-in one's is not, as FLAN-T5's."""
    config = ModelConfig(path="builtin:tiny-t5")
    model = load_model(config, model_facts(config))
    model.lm_head.weight = model.shared.weight
    model.save_pretrained(folder)
    load_tokenizer(config, materialize(config.path)).save_pretrained(folder)
    return str(folder)


NAMES = ["llama", "qwen2", "mixtral", "gpt2", "t5", "bart", "bert-classifier", "t5 with a tied head"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Whatever is tied: the same weights of the same sizes, the same config; and the mean within Transformers' noise,
    which is of a covariance of 1e-9 times that of the rows."""
    path = with_tied_head(tmp_path / "t5") if " " in name else f"builtin:tiny-{name}"
    before = model_facts(ModelConfig(path=path))
    model, facts = grown(path)
    ids = list(facts.new_token_ids)
    assert ids == [before.vocab_size + number for number in range(3)] and facts.stored_vocab_size == before.vocab_size
    assert facts.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    theirs = auto_class(facts.task).from_pretrained(facts.location)
    is_untied = theirs.get_output_embeddings() is not None and (
        theirs.get_output_embeddings().weight is not theirs.get_input_embeddings().weight
    )
    theirs.resize_token_embeddings(facts.vocab_size)
    assert model.config.to_dict() == theirs.config.to_dict() and model.config.vocab_size == before.vocab_size + 3
    own, expected = model.state_dict(), theirs.state_dict()
    assert own.keys() == expected.keys()
    for key, values in own.items():
        head_tied_again = is_untied and theirs.config.is_encoder_decoder and key == "lm_head.weight"
        if not head_tied_again:  # as Transformers 5 does to T5's, whatever it was
            torch.testing.assert_close(values, expected[key], rtol=0, atol=1e-3 * float(values.float().std() + 1))
            torch.testing.assert_close(values[: before.vocab_size], expected[key][: before.vocab_size], rtol=0, atol=0)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for table in (embedding.weight, *([head.weight] if head is not None else [])):
        torch.testing.assert_close(table[ids], table[: before.vocab_size].mean(0).expand(3, -1), rtol=1e-5, atol=1e-6)
    assert (embedding.num_embeddings, getattr(head, "out_features", facts.vocab_size)) == (facts.vocab_size,) * 2
    assert head is None or (head.weight is embedding.weight) == (not is_untied)
    inputs = {"decoder_input_ids": torch.tensor([ids])} if model.config.is_encoder_decoder and head is not None else {}
    assert model(input_ids=torch.tensor([[*ids, 1]]), **inputs).logits.isfinite().all()


@torch.no_grad()
def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    rows = torch.tensor([[5, *ids, 7, 5], [ids[0], 9, 10, ids[-1], *ids[1:-1], 5][: len(ids) + 3]])
    inputs = {"decoder_input_ids": rows} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model.eval()(input_ids=rows, **inputs).logits
    return logits


@pytest.mark.parametrize("name", ["llama", "qwen2", "bart", "t5 with a tied head"])
def test_lora_learns_the_new_rows_alone(name: str, tmp_path: Path) -> None:
    """What is saved is the same model when it is loaded again, by us and by plain PEFT, and merged."""
    path = with_tied_head(tmp_path / "t5") if " " in name else f"builtin:tiny-{name}"
    config = ModelRequest(path=path, new_tokens=TOKENS, adapter=LORA)
    facts = model_facts(config)
    ids = list(facts.new_token_ids)
    model = adapt(load_model(config, facts), LORA, facts.task, "", ids)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert facts.num_trainable_parameters == sum(weight.numel() for weight in trained.values())
    assert sum("lora_" not in name for name in trained) == (2 if name == "llama" else 1), "what is shared is one"
    base = model.get_base_model()
    parts = base.get_input_embeddings(), base.get_output_embeddings()
    before = [part.weight.detach().clone() for part in parts]
    labels = torch.tensor([[*ids, 5, 6, *ids]])
    model(input_ids=labels, labels=labels).loss.backward()
    torch.optim.SGD(trained.values(), lr=1.0).step()
    for part, was in zip(parts, before, strict=True):
        assert ((part.weight != was).any(dim=1).nonzero().flatten()).tolist() == ids
    expected = logits_of(model, ids)

    save_adapter(model, tmp_path / "saved", {name: weight.detach().clone() for name, weight in trained.items()})
    load_tokenizer(config, facts.location).save_pretrained(tmp_path / "saved")
    again = ModelConfig(path=str(tmp_path / "saved"))
    found = model_facts(again)
    assert (found.new_token_ids, found.vocab_size, found.stored_vocab_size) == ((), facts.vocab_size, ids[0])
    loaded = load_finished(again, found, None, "no", torch.device("cpu"))
    torch.testing.assert_close(logits_of(loaded, ids), expected, rtol=0, atol=0)

    plain = auto_class(facts.task).from_pretrained(facts.location)
    plain.resize_token_embeddings(facts.vocab_size)
    peft = PeftModel.from_pretrained(plain, str(tmp_path / "saved"))
    torch.testing.assert_close(logits_of(peft, ids), expected, rtol=1e-4, atol=1e-4)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, ids), expected, rtol=1e-4, atol=1e-4)
    tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert tied == (name != "llama")


def test_what_is_trained_whole_needs_no_rows() -> None:
    whole = LORA.model_copy(update={"modules_to_save": ["lm_head"]})
    config = ModelRequest(path="builtin:tiny-llama", new_tokens=TOKENS, adapter=whole)
    facts = model_facts(config)
    model = adapt(load_model(config, facts), whole, facts.task, "", facts.new_token_ids)
    assert list(model.active_peft_config.trainable_token_indices) == ["model.embed_tokens"]
    assert model.get_output_embeddings().weight.requires_grad


@pytest.mark.parametrize("name", ["llama", "qwen2", "t5"])
def test_deferred_weights_stay_deferred(name: str) -> None:
    read, _ = grown(f"builtin:tiny-{name}")
    model, facts = grown(f"builtin:tiny-{name}", deferred=True)
    assert isinstance(model.get_input_embeddings().weight, Deferred)
    assert model.get_input_embeddings().weight.shape == (facts.vocab_size, 64)
    values = {name: value_of(weight) for name, weight in model.named_parameters()}
    torch.testing.assert_close(values, dict(read.named_parameters()), rtol=0, atol=0)


def test_a_padded_vocabulary_has_room(tmp_path: Path) -> None:
    """The tokens take rows that no token had, and those alone are set."""
    plain = auto_class("causal_lm").from_pretrained(materialize("builtin:tiny-llama"))
    plain.resize_token_embeddings(320)
    shutil.copytree(materialize("builtin:tiny-llama"), tmp_path / "padded")
    plain.save_pretrained(tmp_path / "padded")
    model, facts = grown(str(tmp_path / "padded"))
    assert facts.new_token_ids == (259, 260, 261) and (facts.vocab_size, facts.stored_vocab_size) == (320, None)
    for table, before in (
        (model.model.embed_tokens.weight, plain.model.embed_tokens.weight),
        (model.lm_head.weight, plain.lm_head.weight),
    ):
        torch.testing.assert_close(table[259:262], before[:259].mean(0).expand(3, -1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(table[262:], before[262:], rtol=0, atol=0)
        torch.testing.assert_close(table[:259], before[:259], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_a_token_is_one_id_wherever_it_stands(name: str, tmp_path: Path) -> None:
    path = materialize(f"builtin:tiny-{name}")
    plain = load_tokenizer(ModelConfig(path=path), path)
    tokenizer = load_tokenizer(ModelConfig(path=path, new_tokens=TOKENS), path)
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    assert ids == [len(plain), len(plain) + 1, len(plain) + 2]
    for text in ("a{}b", "{}", "a {} b", "{0}{0}"):
        for token, number in zip(TOKENS, ids, strict=True):
            encoded = tokenizer(text.format(token), add_special_tokens=False)["input_ids"]
            assert [each for each in encoded if each >= len(plain)] == [number] * text.count("{")
    assert tokenizer("plain text")["input_ids"] == plain("plain text")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "".join(TOKENS).replace(" ", "")
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(ModelConfig(path=path, tokenizer=str(tmp_path)), path)
    assert (
        again.get_vocab() == tokenizer.get_vocab()
        and again(TOKENS[1])["input_ids"] == tokenizer(TOKENS[1])["input_ids"]
    )


def test_tokens_that_are_there_are_refused_all_at_once() -> None:
    path = materialize("builtin:tiny-llama")
    with pytest.raises(ScaleupError) as caught:
        load_tokenizer(ModelConfig(path=path, new_tokens=["a", "<|im_end|>", "<new>"]), path, "teacher")
    assert [(problem.where, problem.what.split()[0]) for problem in caught.value.problems] == [
        ("teacher.new_tokens", "'a'"),
        ("teacher.new_tokens", "'<|im_end|>'"),
    ]


def test_a_model_that_keeps_more_for_a_token_is_refused() -> None:
    class Another(LlamaForCausalLM):
        def resize_token_embeddings(self, *arguments: Any, **options: Any) -> Any: ...

    config = AutoConfig.from_pretrained(materialize("builtin:tiny-llama"))
    with pytest.raises(ScaleupError, match=r"model\.new_tokens: Another keeps more for a token than a row"):
        grow_vocabulary(Another(config), 300)
