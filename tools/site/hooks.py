"""Make the site of the repository's own pages, so that no text exists twice.

The site has the folders of the repository. Pages are added at their own paths, and so is every file that they link to,
such as a module or a picture; relative links then work unchanged. The reference pages list the names in `__all__` of a
package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "tasks/*/README.md"),
    *("results/*.md", "results/benchmarks/*/*.md", "common/reloss/surrogates/weights/**/README.md"),
)
LINK = re.compile(r"\]\(([^)#\s]+)")
REFERENCE = {"reference/reloss.md": "reloss", "reference/ranking.md": "reloss.ranking"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, the files that they link to, and the reference."""
    from mkdocs.structure.files import File

    pages = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    for path in sorted(pages | {target for page in pages for target in _linked_files(page)}):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for name, package in REFERENCE.items():
        files.append(File.generated(config, name, content=reference(package)))
    return files


def _linked_files(page: Path) -> Iterator[Path]:
    for target in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve()
        if path.is_file() and path.is_relative_to(ROOT):
            yield path


def reference(package: str) -> str:
    """Return a page with an entry for each public name of a package, in alphabetical order, read from its source."""
    module = ast.parse((ROOT / "common" / Path(*package.split(".")) / "__init__.py").read_text())
    imports = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
    paths = {alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assignments = [node for node in module.body if isinstance(node, ast.Assign)]
    (names,) = (ast.literal_eval(node.value) for node in assignments if ast.unparse(node.targets[0]) == "__all__")
    entries = [f"::: {paths[name]}" for name in sorted(names, key=str.lower)]
    return "\n\n".join((f"# {package}", ast.get_docstring(module) or "", *entries)) + "\n"
