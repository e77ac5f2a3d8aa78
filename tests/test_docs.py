"""What the documentation shows runs as written."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import traceest
import traceest_adapters

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MODULES = [
    info.name
    for package in (traceest, traceest_adapters)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]


OTHERS = "pylops", "lineax", "cola", "linear_operator", "curvlinops"


@contextmanager
def others_may_warn(text: str) -> Iterator[None]:
    """What other libraries warn of, in an example that uses them, is theirs; without them it is skipped."""
    with warnings.catch_warnings():
        used = [other for other in OTHERS if re.search(rf"import {other}|from {other}|import .*, {other}\b", text)]
        if used:
            warnings.simplefilter("ignore")
        for other in used:
            pytest.importorskip(other)
        yield


@pytest.mark.parametrize("name", ["traceest", *MODULES])
def test_docstring_examples_print_what_they_say(name: str) -> None:
    source = importlib.util.find_spec(name)
    assert source is not None
    assert source.origin is not None
    with others_may_warn(Path(source.origin).read_text()):
        module = importlib.import_module(name)
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


PAGES = "docs/adapters.md", "docs/batches.md", "docs/curvature.md", "docs/other_libraries.md"


@pytest.mark.parametrize(("page", "block"), [(page, block) for page in PAGES for block in blocks(page)])
def test_examples_of_the_pages_run_as_written(page: str, block: str) -> None:
    with others_may_warn(block):
        exec(compile(block, page, "exec"), {})


def test_every_public_call_has_an_example() -> None:
    calls = [getattr(traceest, name) for name in traceest.__all__ if name[0].islower() and name != "probes"]
    missing = [f.__name__ for f in calls if ">>>" not in (f.__doc__ or "")]
    assert not missing


@pytest.mark.parametrize("block", blocks("README.md"))
def test_readme_examples_run_as_written(block: str) -> None:
    assert 5 <= len(block.strip().splitlines()) <= 12
    exec(compile(block, "README.md", "exec"), {})


def test_the_quickstart_starts_with_two_bash_blocks() -> None:
    quickstart = README.split("## Quickstart", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^```(\w+)\n", quickstart, re.M)[:2] == ["bash", "bash"]
    assert len(re.findall(r"^```bash\n", quickstart, re.M)) == 2


def test_nothing_is_imported_before_it_is_used() -> None:
    import subprocess
    import sys

    heavy = "jax", "torch", "scipy", "matplotlib", "tqdm"
    code = f"import sys, traceest; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_map_names_rooms_that_are_there() -> None:
    named = re.findall(r"`((?:traceest|tests|docs)\w*/[\w/]*(?:\.\w+)?)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
