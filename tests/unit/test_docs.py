"""README, docs and the pages beside them say what exists: commands, options, configs, links, stages and what trains."""

from __future__ import annotations

import html
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

import scaleup
from scaleup.cli import app
from scaleup.config.load import load_leniently
from scaleup.config.stages import STAGES
from scaleup.plan.compat import STRATEGIES, Cell, verdict
from scaleup.plan.stages import planner_named
from tests.cli import scaleup as scaleup_command
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
)
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
COMMANDS = [
    pytest.param(command, id=f"{page.relative_to(REPOSITORY)}-{number}")
    for page in [*PAGES, *CONFIGS]
    for number, command in enumerate(
        line.strip("`# ").removeprefix(".venv/bin/").partition("  ")[0].partition(" #")[0]
        for line in re.findall(
            r"^(?:#? *)(?:\.venv/bin/)?scaleup [a-z].*$|`scaleup [a-z][^`]*`",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
]
"""Every `scaleup ...` that stands in a line of its own, or in backticks."""


@cache
def commands() -> dict[str, set[str]]:
    """The options of each command."""
    group = typer.main.get_command(app)
    return {
        name: {option for part in command.params for option in part.opts}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists_and_its_config_loads(command: str) -> None:
    words = shlex.split(command.rstrip(",:."))[1:]
    for name in words[0].split("|"):
        assert name in commands(), f"{command}: no such command"
        for option in words[1:]:
            if option.startswith("-"):
                assert option.partition("=")[0] in commands()[name] | {"--help"}, f"{command}: no such option"
    files = [word for word in words[1:] if word.startswith("configs/")]
    overrides = [word for word in words[1:] if re.fullmatch(r"[a-z_.]+=\S+", word)] if files else []
    for file in files:
        load_leniently(REPOSITORY / file, overrides)


def test_commands_were_found() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http:", "https:", "#", "mailto:")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_named_paths_exist(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "CONTRIBUTING.md"):  # which tell of what was, and of a stage that is not there
        return
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:scaleup|tests|configs|scripts|benchmarks|examples|docs)/[\w/.-]+)`", text):
        assert (REPOSITORY / path).exists(), f"{page.name}: {path}"
    for room, rest in re.findall(r"`([a-z]+)/([\w/]+\.py)`", text):
        if (REPOSITORY / "scaleup" / room).is_dir():
            assert (REPOSITORY / "scaleup" / room / rest).is_file(), f"{page.name}: {room}/{rest}"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_the_readme_yaml_loads(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) <= 12
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    load_leniently(tmp_path / "run.yaml", ["parallel.num_processes=8"])


YAMLS = [
    pytest.param(text, id=f"{page.relative_to(REPOSITORY)}-{number}")
    for page in PAGES
    if page.name != "add-a-stage.md"  # whose stage is not there
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("text", YAMLS)
def test_a_yaml_is_one_and_loads_where_it_is_whole(text: str, tmp_path: Path) -> None:
    content = yaml.safe_load(text)
    assert isinstance(content, dict | list)
    if "stage" in content:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        load_leniently(tmp_path / "run.yaml", [])


@pytest.mark.skipif(not (REPOSITORY / "data/reviews").is_dir(), reason="needs the reviews of `make setup`")
def test_the_readme_shows_what_is_refused() -> None:
    ((command, errors),) = re.findall(r"^```text\n\$ scaleup (.*)\n((?:error: .*\n)+)```", README, re.MULTILINE)
    assert scaleup_command(*shlex.split(command), cwd=REPOSITORY).stderr == errors


def trained(stage: str, adapter: str, quantization: str | None) -> str:
    """The strategies that the planner calls ok in float32, as the README writes them."""
    ok = [
        name
        for name in STRATEGIES
        if verdict(Cell(name, quantization, adapter, "no", stage), planner_named(stage).tested).status == "ok"
    ]
    return "all" if len(ok) == len(STRATEGIES) else ", ".join(ok) or "none"


def test_the_readme_table_is_what_the_planner_takes() -> None:
    rows = {
        name.strip(): [cell.strip() for cell in line.split("|")[4:8]]
        for line in README.splitlines()
        if line.startswith("| [")
        for name in re.findall(r"\[([^]]*)\]", line)[0].split(",")
    }
    assert set(rows) == set(STAGES)
    for stage in ("sft", "reward", "ppo", "distill"):
        assert rows[stage] == [
            trained(stage, "full", None),
            trained(stage, "lora", None),
            trained(stage, "lora", "8bit"),
            trained(stage, "lora", "4bit"),
        ], stage


@pytest.mark.parametrize("source", sorted((REPOSITORY / "docs/images").glob("*.dot")), ids=lambda source: source.name)
def test_a_picture_is_made_from_its_source(source: Path) -> None:
    shown = html.unescape(source.with_suffix(".svg").read_text(encoding="utf-8"))
    for label in re.findall(r'label="([^"]+)"', source.read_text(encoding="utf-8")):
        for line in filter(None, map(str.strip, label.split("\\n"))):
            assert line in shown, f"{line}: make the picture again, as {source.name} says"


def test_the_page_on_stages_shows_the_files_that_a_test_runs() -> None:
    page = (REPOSITORY / "docs/add-a-stage.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(\.\./(tests/e2e/toy_stage/[\w/.]+)\):\n\n```\w+\n(.*?)```\n", page, re.DOTALL)
    files = [file for file in (REPOSITORY / "tests/e2e/toy_stage").rglob("*") if file.suffix in (".py", ".yaml")]
    assert sorted(place for place, _ in shown) == sorted(str(file.relative_to(REPOSITORY)) for file in files)
    for place, text in shown:
        assert text == (REPOSITORY / place).read_text(encoding="utf-8"), f"copy {place} into the page"


def test_equations_name_the_functions_that_compute_them() -> None:
    page = (REPOSITORY / "docs/algorithms.md").read_text(encoding="utf-8")
    named = re.findall(r"((?:`\w+`, )*`\w+`) in `(scaleup/[\w/]+\.py)`", page)
    assert len(named) > 25 and page.count("```math") >= 30
    for names, file in named:
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE), f"{name} is not in {file}"
    losses = re.search(r"^LOSSES.*?^}", (REPOSITORY / "scaleup/train/dpo.py").read_text(encoding="utf-8"), re.M | re.S)
    assert losses is not None
    for name in set(re.findall(r'"(\w+)": _', losses[0])) - {"sft"}:
        assert f"**{name}**" in page, f"the equation of {name} is missing"


def test_the_site_names_every_page_once() -> None:
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [page for section in nav for entries in section.values() for entry in entries for page in entry.values()]
    docs = REPOSITORY / "docs"
    beside = ["changelog.md", "contributing.md", "start.md"]  # which scripts/site_hook.py takes from the root
    beside += [str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "benchmarks").glob("*.md")]
    assert sorted(pages) == sorted([*beside, *(str(page.relative_to(docs)) for page in docs.rglob("*.md"))])
    index = (docs / "design/README.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in (docs / "design").glob("*.md") if page.name != "README.md")


def test_the_glossary_names_what_exists() -> None:
    glossary, missing = docs_glossary(), []
    assert len(glossary) > 30
    for _, words, places in glossary:
        text = "".join((REPOSITORY / place).read_text(encoding="utf-8") for place in re.findall(r"`([\w/.]+)`", places))
        for word in re.findall(r"`([\w.]+)`", words):
            if not re.search(rf"\b{word.rpartition('.')[2]}\b", text):
                missing.append(f"{word} is not in {places}")
    assert not missing


def docs_glossary() -> list[list[str]]:
    """Paper's word, our word, place: a row each."""
    lines = (REPOSITORY / "docs/glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if "`" in row[2]]


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == scaleup.__version__ and citation["license"] == "Apache-2.0"
    assert (REPOSITORY / "scaleup/py.typed").is_file()
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")


def test_the_page_of_the_house_has_every_room_and_the_checked_order() -> None:
    page = (REPOSITORY / "docs/design/two-planes.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (REPOSITORY / "scaleup").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms = {f"{room}/" if "." not in room else room for room in rooms if not room.startswith("_")}
    listed = set(re.findall(r"^\| `([\w./]+)` \|", page, re.MULTILINE))
    assert listed == rooms
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    for contract in contracts["contracts"]:
        if contract["type"] == "layers":
            name, _, order = contract["name"].partition(": ")
            assert f"`{order}`" in page, f"{name} says {order}"
        else:
            assert f"- {contract['name']}.\n" in page, contract["name"]


def test_the_tour_is_about_as_long_as_it_says() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    stops = re.findall(r"^\| (\d+)\. (.*?) \| ([\d,]+) \|", text, re.MULTILINE)
    said = {number: int(lines.replace(",", "")) for number, _, lines in stops}
    heart = sum(said[str(number)] for number in range(4, 12))
    assert len(stops) == 11 and abs(heart - 6700) < 250
    for number, links, _ in stops:
        places = [REPOSITORY / link for link in re.findall(r"\((scaleup/[^)]+)\)", links)]
        files = {file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])}
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert abs(lines - said[number]) < 0.2 * lines, f"stop {number} has {lines} lines"


def test_every_row_of_the_threat_model_names_tests_that_exist_or_is_open() -> None:
    text = (REPOSITORY / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.endswith(" test |")]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named or "**open**" in row, row
        for file, test in named:
            assert f"def {test}(" in (REPOSITORY / file).read_text(encoding="utf-8"), f"{file} has no {test}"
