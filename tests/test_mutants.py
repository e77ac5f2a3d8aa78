"""The list of the mutation run fits the code: every change is of one line that is there, by tests that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutate import ROOT, Mutant, mutants

MUTANTS = mutants()


def test_every_mutant_applies_to_one_line_and_names_tests() -> None:
    for mutant in MUTANTS:
        changed = mutant.applied((ROOT / mutant.path).read_text())
        compile(changed, mutant.path, "exec")
        assert mutant.tests
        assert all((ROOT / "tests" / test.partition("::")[0]).is_file() for test in mutant.tests)


def test_there_are_enough_of_both_packages_and_none_twice() -> None:
    assert len(set(MUTANTS)) == len(MUTANTS) >= 100
    for package in ("traceest/", "traceest_adapters/torch/", "traceest_adapters/jax/"):
        assert sum(m.path.startswith(package) for m in MUTANTS) >= 15


@pytest.mark.parametrize("old", ["nowhere", "x = ", "y = 1\nx", "x = 1"])
def test_a_mutant_that_no_longer_applies_is_told(old: str) -> None:
    source = "x = 1\ny = 1\nx = 2\n"
    with pytest.raises(ValueError, match="expected once"):
        Mutant("some.py", old, "x = 1", ()).applied(source)


def test_every_line_of_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mutants.toml"
    path.write_text("['a.py']\ntests = 'one.py two.py'\nlines = [['x', 'y'], ['u', 'v', 'three.py']]\n")
    assert mutants(path) == [Mutant("a.py", "x", "y", ("one.py", "two.py")), Mutant("a.py", "u", "v", ("three.py",))]
