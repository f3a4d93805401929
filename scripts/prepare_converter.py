"""Fetch llama.cpp's converter, which writes a Hugging Face folder as a GGUF file.

    .venv/bin/python scripts/prepare_converter.py [--out DIR]

It downloads the source archive of llama-cpp-python (MIT) with pip, which checks its SHA-256, and takes the converter
out of it with what it imports, some 2 MB: nothing is built or installed. `export.format: gguf` looks for it in the
cache, where it is put, or in the folder that `export.converter` names.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from scaleup.artifacts.files import folder_aside
from scaleup.plan.model_path import CONVERTER_FILE, converter_folder

REQUIREMENT = "llama-cpp-python==0.3.36"  # constraints.txt says the same; a test compares them
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
ROOT = "vendor/llama.cpp"
WANTED = (CONVERTER_FILE, "LICENSE", "conversion/", "gguf-py/LICENSE", "gguf-py/gguf/")
"""Files, and folders with all that is in them, under `ROOT`."""


def download_sdist() -> bytes:
    """Fetch the source archive with pip, which checks its hash before it looks inside. For the metadata there pip gets
    the build tool that it names, in a folder of its own."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    name = REQUIREMENT.partition("==")[0]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{REQUIREMENT} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
        options = ["--no-binary", name, "--require-hashes", "--requirement", str(wanted)]
        subprocess.run([*pip, *options, "--dest", f"{folder}/sdist"], check=True)
        (path,) = Path(folder, "sdist").iterdir()
        return path.read_bytes()


def read_files(sdist: bytes) -> dict[str, bytes]:
    """Path under `ROOT` -> content, of the regular files that are wanted. No path leads out of the folder."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(sdist), mode="r:gz") as archive:
        for member in archive.getmembers():
            _, _, name = member.name.partition(f"/{ROOT}/")
            stream = archive.extractfile(member) if member.isfile() and _is_wanted(name) else None
            if stream is not None:
                found[name] = stream.read()
    if CONVERTER_FILE not in found:
        raise ValueError(f"{REQUIREMENT} holds no {ROOT}/{CONVERTER_FILE}")
    return found


def _is_wanted(name: str) -> bool:
    is_inside = name != "" and ".." not in PurePosixPath(name).parts
    return is_inside and any(name == wanted or (wanted[-1] == "/" and name.startswith(wanted)) for wanted in WANTED)


def write_all(files: Mapping[str, bytes], out: Path) -> None:
    """The whole folder at once, in place of an older one."""
    with folder_aside(out) as aside:
        for name, content in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(content)


def main() -> None:
    """Download, take out, write, and print a line."""
    default = converter_folder(None)
    parser = argparse.ArgumentParser(description="Fetch llama.cpp's converter.")
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help=f"default: {default}")
    out: Path = parser.parse_args().out
    if out.is_dir() and any(out.iterdir()) and not (out / CONVERTER_FILE).is_file():
        parser.error(f"{out} holds something else, and would be replaced: name a new folder")
    files = read_files(download_sdist())
    write_all(files, out.absolute())
    print(f"converter: {len(files)} files in {out}")


if __name__ == "__main__":
    main()
