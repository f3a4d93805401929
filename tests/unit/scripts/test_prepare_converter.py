"""What is taken out of a source archive, on a small one made in memory."""

import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_converter", ROOT / "scripts" / "prepare_converter.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


converter = load_script()
WANTED = ("convert_hf_to_gguf.py", "LICENSE", "conversion/llama.py", "gguf-py/gguf/constants.py")


def sdist(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"llama_cpp_python-1/vendor/llama.cpp/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return buffer.getvalue()


def test_the_converter_and_what_it_imports_and_nothing_else(tmp_path: Path) -> None:
    found = converter.read_files(sdist(*WANTED, "src/llama.cpp", "conversion/../../../evil.py", "gguf-py/tests/a.py"))
    assert found == {name: name.encode() for name in WANTED}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.py").write_text("of an older version")
    converter.write_all(found, tmp_path / "out")
    written = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert written == set(WANTED)


def test_an_archive_without_it() -> None:
    with pytest.raises(ValueError, match=r"holds no vendor/llama\.cpp/convert_hf_to_gguf\.py"):
        converter.read_files(sdist("LICENSE"))


def test_a_folder_of_something_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(sys, "argv", ["prepare_converter", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        converter.main()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_pin_is_that_of_the_constraints() -> None:
    assert converter.REQUIREMENT in (ROOT / "constraints.txt").read_text().splitlines()
