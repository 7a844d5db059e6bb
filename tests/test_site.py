"""The site of the documentation: its navigation and its reference. `make docs` builds it and checks its links."""

import importlib
import re
from pathlib import Path

import pytest

from tools.site.hooks import REFERENCE, ROOT, reference

CONFIG = ROOT / "tools" / "site" / "mkdocs.yml"


def test_the_navigation_has_every_page_of_docs() -> None:
    pages = re.findall(r": (\S+\.md)$", CONFIG.read_text(), re.MULTILINE)
    assert len(pages) == len(set(pages))
    assert {page for page in pages if not (ROOT / page).is_file()} == set(REFERENCE)
    written = {path.relative_to(ROOT).as_posix() for path in Path(ROOT / "docs").glob("*.md")}
    assert {page for page in pages if page.startswith("docs/")} == written


@pytest.mark.parametrize("package", sorted(REFERENCE.values()))
def test_the_reference_has_every_public_name(package: str) -> None:
    paths = re.findall(r"^::: (\S+)$", reference(package), re.MULTILINE)
    module = importlib.import_module(package)
    assert sorted(path.rpartition(".")[2] for path in paths) == sorted(module.__all__)
    for path in paths:
        source, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(source), name) is getattr(module, name)
