"""What is run, by name: `nox` runs the default tests, lint and types, `nox -l` lists all.

Tests need JAX and PyTorch; `UV_TORCH_BACKEND=cpu` or pip's `--extra-index-url` in PIP_EXTRA_INDEX_URL chooses the
smaller CPU build of the latter.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_existing_virtualenvs = True


def installed(session: nox.Session, extras: str) -> None:
    """Install the tree, editable, with the versions that the tests are known to pass with."""
    session.install("-c", "tests/constraints.txt", "-e", f".[{extras}]")


@nox.session
def tests(session: nox.Session) -> None:
    """The default run, on two cores."""
    installed(session, "all,test")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """All tests, the long ones included: for once a week."""
    installed(session, "all,test")
    session.run("python", "-m", "pytest", "-n", "2", "-m", "slow or not slow", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Whether the default run notices each of the changes in tests/mutants.toml."""
    installed(session, "all,test")
    session.run("python", "-m", "tests.mutate", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and its layout."""
    session.install("-c", "tests/constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strictly."""
    installed(session, "all,test")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Examples in docstrings and pages, run as written."""
    installed(session, "all,test")
    session.run("python", "-m", "pytest", "-n", "2", "tests/test_docs.py", *session.posargs)
