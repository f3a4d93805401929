"""The hook of mkdocs.yml: pages beside docs/ join the site, links out of docs/ are turned, equations become MathML.

On GitHub each file is read where it lies. On the site README.md, CONTRIBUTING.md, CHANGELOG.md and benchmarks/ are
pages too, and a link to another file of the repository leads to GitHub."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

REPOSITORY = Path(__file__).resolve().parents[1]
BESIDE = {"README.md": "start.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository's root, and the names of their pages."""
LINK = re.compile(r"(\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def page_of(place: str) -> str | None:
    """Returns the site's name of a file of the repository, or none where the site does not hold it."""
    if place in BESIDE:
        return BESIDE[place]
    if place.startswith("docs/") and (REPOSITORY / place).is_file():
        return place.removeprefix("docs/")
    return place if re.fullmatch(r"benchmarks/\w+\.(md|png)", place) else None


def beside() -> dict[str, str]:
    """Returns what the site holds from outside docs/: the place in the repository by the site's name."""
    places = [*BESIDE, *(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "benchmarks").iterdir())]
    return {name: place for place in sorted(places) if (name := page_of(place))}


def turned(link: str, place: str, name: str, address: str) -> str:
    """Returns a link of the file at `place` as it is to be on the page `name`."""
    path, mark, part = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
        return link
    target = os.path.normpath(Path(place).parent / path)
    page = page_of(target)
    if page is not None:
        return os.path.relpath(page, Path(name).parent) + mark + part
    if not (REPOSITORY / target).exists():
        return link  # which mkdocs then complains of
    kind = "tree" if (REPOSITORY / target).is_dir() else "blob"
    return f"{address}/{kind}/main/{target}{mark}{part}"


def equation(fence: str) -> str:
    """Returns a fence of LaTeX as MathML, which browsers show without a script."""
    latex = re.sub(r"^ *```\w*\n?", "", fence, flags=re.MULTILINE).strip()
    return f'<div class="equation">{convert(latex, display="block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings get the marks that GitHub gives them."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What lies beside docs/ joins the site."""
    for name, place in beside().items():
        files.append(File.generated(config, name, abs_src_path=str(REPOSITORY / place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Links are turned and equations set, outside of code."""
    name = page.file.src_uri
    place = beside().get(name, f"docs/{name}")
    address = config.extra["repository"]
    parts = FENCE.split(markdown)
    for number, part in enumerate(parts):
        if number % 2 == 0:
            parts[number] = LINK.sub(lambda found: found[1] + turned(found[2], place, name, address), part)
        elif part.lstrip().startswith("```math"):
            parts[number] = equation(part)
    return "".join(parts)
