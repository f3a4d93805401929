"""What a finished run leaves behind."""

import json

from scaleup.artifacts.files import read_json
from scaleup.artifacts.metrics_log import logged_lines
from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_model, load_tokenizer
from scaleup.train.finish import TrainedModel, finish_training, write_result
from scaleup.train.job import Job
from tests.classifier import sharp_classifier_like
from tests.unit.data import tiny
from tests.unit.reports.test_training import CONFIG, LINES, METRICS, STATE


def test_finishing_a_training(runtime, run):
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert logged_lines(run.metrics_file) == LINES
    model, tokenizer = tiny.model("llama"), tiny.tokenizer("llama")
    train = CONFIG.train.model_copy(update={"max_shard_size": "60KB"})
    job = Job(CONFIG.model_copy(update={"train": train}), tiny.plan(run.path), runtime, run)
    finish_training(job, TrainedModel(model, tokenizer, STATE, left_out={"unlearned": 1}))

    assert read_json(run.manifest_file)["metrics"] == METRICS
    wanted = {"config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "README.md"}
    assert wanted <= {file.name for file in run.model.iterdir()}
    assert len(list(run.model.glob("model-0*.safetensors"))) > 1
    facts = tiny.facts("llama").model_copy(update={"location": str(run.model)})
    weights = model.state_dict()
    assert all((weights[key] == weight).all() for key, weight in load_model(CONFIG.model, facts).state_dict().items())
    again = load_tokenizer(CONFIG.model, str(run.model))
    assert again("a b")["input_ids"] == tokenizer("a b")["input_ids"] and again.chat_template


def test_a_decoder_that_classifies_is_saved_with_its_tokenizer_s_padding(runtime, run, tmp_path):
    """Of which loading made one up: plain Transformers must refuse batches where pad is eos."""
    named = ModelConfig(path=str(sharp_classifier_like("tiny-gpt2", tmp_path / "whole")))
    facts = model_facts(named)
    model, tokenizer = load_model(named, facts), load_tokenizer(named, facts.location)
    tokenizer.pad_token = tokenizer.eos_token
    plain_padding(model, tokenizer)
    model.transformer.requires_grad_(False)  # so that the rest is read from the base again
    config = CONFIG.model_copy(update={"model": named})
    assert load_model(named, facts).config.pad_token_id is not None
    job = Job(config, tiny.plan(tmp_path, model=facts), runtime, run)
    (tmp_path / "result").mkdir()
    runtime.hand_out(model, lambda weights: write_result(job, model, weights, tmp_path / "result"))
    assert read_json(tmp_path / "result/config.json").get("pad_token_id") is None
