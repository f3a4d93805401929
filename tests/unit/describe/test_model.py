import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scaleup.config.load import load_mapping
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.ppo import PPOConfig
from scaleup.describe.answer import describe
from scaleup.describe.model import model_facts
from scaleup.errors import Problem, ScaleupError
from scaleup.models.sources import materialize
from scaleup.plan.facts import MicroBatch, ModelFacts, ModelRequest, Tensors
from scaleup.plan.stages import planner_of


def problem(where: str = "model", **model: object) -> Problem:
    with pytest.raises(ScaleupError) as caught:
        model_facts(ModelConfig.model_validate(model), where)
    [only] = caught.value.problems
    return only


def folder(path: Path, config: object) -> str:
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


def test_what_it_says() -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-qwen2"))
    assert facts == ModelFacts(
        location=materialize("builtin:tiny-qwen2"),
        task="causal_lm",
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        num_parameters=90880,
        num_trainable_parameters=90880,
        tensors=(
            Tensors(shape=(259, 64), count=1),
            Tensors(shape=(64, 128), count=2),
            Tensors(shape=(128, 64), count=4),
            Tensors(shape=(64, 64), count=4),
            Tensors(shape=(32, 64), count=4),
            Tensors(shape=(64,), count=7),
            Tensors(shape=(32,), count=4),
        ),
        largest_block=37_120,
        vocab_size=259,
        max_positions=512,
        tokenizer_size=259,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        has_chat_template=True,
        attention_width=2 * 64,
        hidden_size=64,
        num_lookup_parameters=0,
        num_layers=2,
        vocabulary=facts.vocabulary,
    )
    assert facts.vocabulary == model_facts(ModelConfig(path="builtin:tiny-llama")).vocabulary != ""
    t5 = model_facts(ModelConfig(path="builtin:tiny-t5", task="seq2seq_lm"))
    assert (t5.task, t5.max_positions, t5.has_chat_template) == ("seq2seq_lm", None, False)


def test_t5_whose_files_tie_the_head_counts_it_once(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    untied = model_facts(ModelConfig(path="builtin:tiny-t5"))
    model = AutoModelForSeq2SeqLM.from_pretrained(untied.location)
    model.lm_head.weight = model.shared.weight
    shutil.copytree(untied.location, tmp_path / "tied")
    model.save_pretrained(tmp_path / "tied")
    tied = model_facts(ModelConfig(path=str(tmp_path / "tied")))
    assert tied.num_parameters == untied.num_parameters - model.shared.weight.numel()


def test_contradicting_tasks() -> None:
    wrong = problem(path="builtin:tiny-bart", task="causal_lm")
    assert (wrong.where, wrong.remedy) == ("model.task", "set it to seq2seq_lm or auto")
    assert problem(path="builtin:tiny-gpt2", task="seq2seq_lm").where == "model.task"


def test_a_classifier_does_not_begin_as_an_adapter_of_a_language_model(tmp_path: Path) -> None:
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": materialize("builtin:tiny-llama"),
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ScaleupError, match="is an adapter of a language model, and a classifier has another head"):
        model_facts(ModelConfig(path=str(tmp_path), task="sequence_classification"))


def test_the_labels_of_a_head() -> None:
    """Its own, or those asked for where it is new; one of a single score stays without."""
    asked = {"task": "sequence_classification", "new_labels": ("a", "b"), "problem": "multi_label"}
    new = model_facts(ModelRequest(path="builtin:tiny-bert", **asked))
    own = model_facts(ModelRequest(path="builtin:tiny-bert-classifier", **asked))
    score = model_facts(ModelRequest(path="builtin:tiny-bert", task="sequence_classification"))
    assert (new.labels, new.new_labels, new.problem) == ((), ("a", "b"), "multi_label")
    assert (own.labels, own.new_labels, own.problem) == (("negative", "positive"), (), "multi_label")
    assert (score.classes, score.problem, score.reads_labels) == ((), None, False)
    assert new.num_parameters == score.num_parameters + 64 + 1


def test_folders_that_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "empty"): "no config.json",
        folder(tmp_path / "broken", "{"): "not a valid JSON",
        folder(tmp_path / "typeless", {}): "model_type",
        folder(tmp_path / "unknown", {"model_type": "zork"}): "zork",
        folder(tmp_path / "odd", {"model_type": "llama", "hidden_size": "x"}): "hidden_size",
        folder(tmp_path / "encoder", {"model_type": "bert"}): "is an encoder",
        folder(tmp_path / "vision", {"model_type": "vit"}): "cannot be built as a causal_lm",
        folder(tmp_path / "wordless", {"model_type": "t5"}): "no tokenizer files",
        str(tmp_path / "missing"): "missing' does not exist",
        "nobody/no-such-model": "'nobody/no-such-model' is no folder here, and no hub name that this machine can reach",
    }
    for path, what in cases.items():
        found = problem(path=path)
        assert found.where == "model.path", path
        assert what in found.what
        assert found.remedy


def test_code_in_the_folder_needs_trust(tmp_path: Path) -> None:
    path = folder(tmp_path / "own", {"model_type": "zork", "auto_map": {"AutoConfig": "code.Config"}})
    assert problem(path=path).where == "model.trust_remote_code"


def test_where_is_the_requests() -> None:
    assert problem("teacher", path="builtin:zzz").where == "teacher.path"
    assert problem("teacher", path="builtin:tiny-t5", tokenizer="/nowhere/at/all").where == "teacher.tokenizer"


def test_another_tokenizer(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(Path(materialize("builtin:tiny-gpt2")) / "config.json", bare)
    facts = model_facts(ModelConfig(path=str(bare), tokenizer="builtin:tiny-llama"))
    assert facts.has_chat_template


@pytest.mark.slow
def test_as_a_process(tmp_path: Path) -> None:
    """Prints of a model's own code, too, stay out of the answer."""
    noisy = folder(tmp_path / "noisy", {"model_type": "zork", "auto_map": {"AutoConfig": "code.Config"}})
    (Path(noisy) / "code.py").write_text("print('hello from remote code')\nraise OSError('broken code')\n")
    requests = [
        {"where": "model", "model": ModelConfig(path="builtin:tiny-gpt2").model_dump()},
        {"where": "reward", "model": {"path": "builtin:tiny-gpd2"}},
        {"where": "noisy", "model": {"path": noisy, "trust_remote_code": True}},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "scaleup.describe.answer"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=True,
    )
    reply = json.loads(done.stdout)
    assert ModelFacts.model_validate(reply["facts"][0]) == model_facts(ModelConfig(path="builtin:tiny-gpt2"))
    assert reply["facts"][1:] == [None, None]
    assert [found["where"] for found in reply["problems"]] == ["reward.path", "noisy.path"]
    assert reply["problems"][0]["remedy"] == "did you mean builtin:tiny-gpt2?"


def test_the_parameters_of_flan_t5_base(tmp_path: Path) -> None:
    """By its published config: whole, LoRA of rank 32 on q and v, and with PPO's value head beside it."""
    shape = {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12}
    shutil.copytree(materialize("builtin:tiny-t5"), tmp_path / "flan")
    tables = {name: torch.zeros(32128, 768, dtype=torch.bfloat16) for name in ("shared.weight", "lm_head.weight")}
    tables["lm_head.weight"][0] = 1  # the files have a head of its own
    save_file(tables, tmp_path / "flan/model.safetensors")
    config = json.loads((tmp_path / "flan/config.json").read_text()) | shape
    config |= {"vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    (tmp_path / "flan/config.json").write_text(json.dumps(config))
    raw = {
        "stage": "ppo",
        "name": "detox",
        "model": {"path": str(tmp_path / "flan")},
        "data": {"train": "rows.jsonl", "prompt": "{text}", "max_length": 64},
        "adapter": {"type": "lora", "r": 32, "target_modules": ["q", "v"]},
        "ppo": {"num_rollouts": 1, "rollout_batch_size": 8, "max_new_tokens": 8},
        "reward": {"model": {"path": "builtin:tiny-bert-classifier"}, "label": "positive"},
    }
    config = load_mapping(raw).config
    assert isinstance(config, PPOConfig)
    facts = model_facts(ModelRequest(path=config.model.path, adapter=config.adapter))
    with_values = planner_of(config).trained(config, {"model": facts})
    assert facts.num_parameters - facts.num_trainable_parameters == 247_577_856
    assert facts.num_trainable_parameters == 3_538_944
    assert facts.num_trainable_parameters / facts.num_parameters == pytest.approx(0.0141, abs=5e-5)
    assert with_values.num_trainable_parameters == 3_539_713


@pytest.mark.parametrize(
    ("name", "wanted", "remedy"),
    [
        ("tiny-gpt2", "flex_attention", "use eager or sdpa or flash_attention_2 or flash_attention_3"),
        ("tiny-t5", "flash_attention_2", "use eager or sdpa or flex_attention"),
    ],
)
def test_attention_that_the_family_lacks(name: str, wanted: Any, remedy: str) -> None:
    with pytest.raises(ScaleupError) as refused:
        model_facts(ModelConfig(path=f"builtin:{name}", attn_implementation=wanted))
    [problem] = refused.value.problems
    assert problem.where == "model.attn_implementation"
    assert problem.what.endswith(f"has no {wanted} in Transformers")
    assert problem.remedy == remedy


def test_attention_changes_no_fact_but_what_is_kept_of_it() -> None:
    """A GPU's kernels are planned for where there is none."""
    path, batch = "builtin:tiny-llama", MicroBatch(rows=2, max_length=512)
    known = {
        each: describe(ModelRequest(path=path, attn_implementation=each), batch)
        for each in (None, "sdpa", "eager", "flash_attention_2", "flex_attention")
    }
    assert known[None] == known["sdpa"] == known["flash_attention_2"] == known["flex_attention"]
    without = {each: facts.model_copy(update={"footprints": ()}) for each, facts in known.items()}
    assert without["eager"] == without["sdpa"]
    [kept], [few] = known["eager"].footprints, known["sdpa"].footprints
    scores, mask = 4 * 2 * 4 * 512 * 512, 4 * 2 * 512 * 512  # float32, of 2 rows and 4 heads; sdpa keeps a mask
    assert kept.forward - few.forward == pytest.approx(2 * (scores - mask), rel=0.01), "of 2 layers"
