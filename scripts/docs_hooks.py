"""MkDocs hooks: check and include the files outside of docs/ that pages link to.

The pages are read in the repository as well as on the site, so they link to files such as THREAT_MODEL.md by their path
in the repository. MkDocs knows only docs/. These hooks add each such file to the site, below ``repository/``, and
rewrite links to it; a link to a file that does not exist is left unchanged, and MkDocs reports it.

A link to a directory leads to a list of its files. The Markdown files at the top of the repository are always included,
so that their links are checked too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs/"
REPOSITORY = "repository/"
ALWAYS = ("README.md", "CONTRIBUTING.md", "THREAT_MODEL.md", "SECURITY.md", "CHANGELOG.md", "charts/cdi/README.md")
# [text](target "title"), images included; a target in angle brackets or with a scheme is left unchanged.
LINK = re.compile(r"(\]\()([^)\s<>#:]+)((?:#[^)\s]*)?(?:\s+\"[^\"]*\")?\))")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def site_path(path: str) -> str:
    """Return a file's path on the site, given its path in the repository."""
    return path.removeprefix(DOCS) if path.startswith(DOCS) else REPOSITORY + path


def repository_path(place: str) -> str:
    """Return the path in the repository of a path on the site."""
    return place.removeprefix(REPOSITORY) if place.startswith(REPOSITORY) else DOCS + place


def targets(text: str, path: str) -> set[str]:
    """Return the paths in the repository that a page links to."""
    found = LINK.findall(FENCE.sub("", text))
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) for _, target, _ in found}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    wanted = {path for path in ALWAYS if (ROOT / path).is_file()}
    for file in files.documentation_pages():
        wanted |= targets(file.content_string, DOCS + file.src_uri)
    for path in sorted(wanted):
        if (ROOT / path).is_file() and path.endswith(".md"):
            wanted |= targets((ROOT / path).read_text(encoding="utf-8"), path)
    listed = {path for path in wanted if (ROOT / path).is_dir() and not f"{path}/".startswith(DOCS)}
    for path in sorted(listed):
        names = sorted(each.name for each in (ROOT / path).iterdir() if each.is_file())
        wanted |= {f"{path}/{name}" for name in names}
        text = f"# {path}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
        files.append(File.generated(config, f"{REPOSITORY}{path}/index.md", content=text))
    for path in sorted(wanted):
        place = site_path(path)
        if (ROOT / path).is_file() and place.startswith(REPOSITORY):
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - as called
    place = page.file.src_uri
    source = repository_path(place)

    def rewritten(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        target = site_path(path)
        if (ROOT / path).is_dir():
            target += "/index.md"
        if not files.get_file_from_path(target):
            return match[0]
        return match[1] + posixpath.relpath(target, posixpath.dirname(place) or ".") + match[3]

    return LINK.sub(rewritten, markdown)
