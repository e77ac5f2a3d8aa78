"""`check` passes what is right, and says which property does not hold of what is not."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
from assertions import Counter, assert_counts
from conftest import BACKENDS
from models import as_jax, jax_mlp, torch_mlp

import traceest as te
from traceest_adapters.jax import ntk as jax_ntk
from traceest_adapters.torch import ntk as torch_ntk

N = 30
J = zoo.jacobian(6, 5, 20)
SYMMETRIC = zoo.indefinite(N)


# it looks at values, and so runs around compiled code and not inside
EAGER = pytest.mark.parametrize("backend", [b for b in BACKENDS if not b.jitted], ids=repr)
LOOKER = sys.modules["traceest.checks"]._Looker


RIGHT = {
    "general": (zoo.nonsymmetric(N), {}),
    "complex": (zoo.complex_general(N), {}),
    "oblong": (J, {}),
    "complex oblong": (zoo.jacobian(6, 5, 20, complex_=True), {"n_blocks": 6}),
    "blocks": (J, {"n_blocks": 6}),
    "symmetric": (SYMMETRIC, {"symmetric": True}),
    "hermitian": (zoo.hermitian(N), {"symmetric": True}),
    "positive": (zoo.spectral("fastexp", N), {"psd": True}),
    "zero": (np.zeros((N, N)), {"psd": True}),
}


@EAGER
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e18])
@pytest.mark.parametrize("single", [False, True], ids=["double", "single"])
def test_what_is_right_passes(backend, name, scale, single):
    A, known = RIGHT[name]
    A = A * scale
    if single:
        A = A.astype(np.complex64 if np.iscomplexobj(A) else np.float32)
    report = te.check(te.aslinearoperator(backend.asarray(A), **known), strict=True)
    assert report
    assert report["linear"]
    assert report["adjoint"]


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_kernels_of_models_pass_with_all_their_abilities(framework):
    model, x = torch_mlp(), np.random.default_rng(0).standard_normal((7, 6))
    if framework == "torch":
        import torch

        K = torch_ntk(model, torch.from_numpy(x))
    else:
        K = jax_ntk(jax_mlp, as_jax(model), jnp.asarray(x))
    report = te.check(K, strict=True)
    assert {f.name for f in report.findings} >= {"adjoint", "gram", "blocks", "pairs"}


@pytest.mark.parametrize("seed", range(20))
def test_rounding_is_excused_whatever_the_probes(seed):
    A = zoo.spectral("fastexp", 200).astype(np.float32)
    assert te.check(te.aslinearoperator(A, psd=True), rng=seed)


def operator(A, matmat=None, rmatmat=None, **more):
    """A, with a product replaced."""
    op = te.aslinearoperator(A)
    return te.Operator(A.shape, like=A, matmat=matmat or op.matmat, rmatmat=rmatmat or op.rmatmat, **more)


def drifting(A):
    calls = []

    def matmat(X):
        calls.append(1)
        return (1 + 1e-4 * len(calls)) * (A @ X)

    return matmat


def namespace(A):
    return te.aslinearoperator(A).__array_namespace__()


def in_blocks(A):
    return te.aslinearoperator(A, n_blocks=6)


def turned_round(A):
    return lambda V: namespace(A).flip(te.operators.block_sqnorms(in_blocks(A), V), axis=0)


WRONG = {
    "affine": (SYMMETRIC, lambda A: {"matmat": lambda X: A @ X + 1.0}, {"linear", "adjoint"}),
    "absolute value": (SYMMETRIC, lambda A: {"matmat": lambda X: abs(A @ X)}, {"linear", "adjoint"}),
    "slightly bent": (SYMMETRIC, lambda A: {"matmat": lambda X: A @ X + 1e-6 * X**2}, {"linear", "adjoint"}),
    "drifting": (SYMMETRIC, lambda A: {"matmat": drifting(A)}, {"deterministic", "columns", "adjoint"}),
    "normalised": (
        SYMMETRIC,
        lambda A: {"matmat": lambda X: A @ X / X.shape[1]},
        {"columns", "adjoint"},
    ),
    "transpose for adjoint": (
        zoo.complex_general(N),
        lambda A: {"rmatmat": lambda V: namespace(A).matrix_transpose(A) @ V},
        {"adjoint"},
    ),
    "forgotten transpose": (zoo.nonsymmetric(N), lambda A: {"rmatmat": lambda V: A @ V}, {"adjoint"}),
    "scaled adjoint": (J, lambda A: {"rmatmat": lambda V: 2.0 * te.aslinearoperator(A).rmatmat(V)}, {"adjoint"}),
    "not symmetric": (zoo.nonsymmetric(N), lambda A: {"symmetric": True}, {"symmetric"}),
    "one entry": (
        SYMMETRIC + 1e-5 * np.eye(N, k=N - 1),
        lambda A: {"symmetric": True},
        {"symmetric"},
    ),
    "not positive": (-zoo.spectral("poly", N), lambda A: {"psd": True}, {"psd"}),
    "not a number": (SYMMETRIC, lambda A: {"matmat": lambda X: A @ X / 0.0}, {"finite"}),
    "too few rows": (SYMMETRIC, lambda A: {"matmat": lambda X: (A @ X)[1:, :]}, {"shape"}),
    "norms of the wrong blocks": (
        J,
        lambda A: {"n_blocks": 6, "block_sqnorms": turned_round(A)},
        {"blocks"},
    ),
    "pairs that are halved": (
        J,
        lambda A: {"n_blocks": 6, "sketch_gram": lambda V: te.operators.sketch_gram(in_blocks(A), V) / 2.0},
        {"pairs"},
    ),
    "another gram": (J, lambda A: {"gram_matmat": lambda V: 3.0 * V}, {"gram"}),
}


def check_wrong(backend, name):
    A, change, failures = WRONG[name]
    A = backend.asarray(A)
    with np.errstate(divide="ignore", invalid="ignore"):
        report = te.check(operator(A, **change(A)))
    assert {f.name for f in report.failures} == failures
    assert not report
    with pytest.raises(ValueError, match=r"properties do not hold"), np.errstate(divide="ignore", invalid="ignore"):
        te.check(operator(A, **change(A)), strict=True)


@EAGER
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(backend, name):
    check_wrong(backend, name)


def test_one_side_alone_is_looked_at():
    forward = te.Operator(J.shape, like=J, matmat=lambda X: J @ X)
    report = te.check(forward)
    assert report
    assert (report.n_matvecs, report.n_rmatvecs) == (5, 0)
    with pytest.raises(KeyError, match="only shape, finite, deterministic, columns, linear"):
        report["adjoint"]
    reverse = te.check(te.gram(te.Operator(J.shape, like=J, rmatmat=lambda V: J.T @ V)))
    assert (reverse.n_matvecs, reverse.n_rmatvecs) == (0, 5)


def test_an_operator_without_products_is_refused():
    with pytest.raises(TypeError, match="check: needs matmat"):
        te.check(te.Operator((3, 3), like=np.zeros(0)))


@pytest.mark.parametrize("A", [SYMMETRIC, J, te.aslinearoperator(J, n_blocks=6)], ids=["square", "oblong", "blocks"])
def test_counts_are_what_was_spent(A):
    counter = Counter(te.aslinearoperator(A))
    assert_counts(te.check(counter), counter)


def test_the_report_prints_what_to_look_for():
    A = te.aslinearoperator(SYMMETRIC)
    good, bad = str(te.check(A)), str(te.check(operator(SYMMETRIC, matmat=lambda X: SYMMETRIC @ X + 1)))
    assert "looks self-adjoint" in good
    assert "✗ linear" in bad
    assert "look for an affine term" in bad
    assert te.check(A).symmetric
    assert not te.check(zoo.nonsymmetric(N)).symmetric
    assert te.check(J).symmetric is None


@pytest.mark.parametrize(
    ("property_", "name"),
    [
        ("_adjoint", "forgotten transpose"),
        ("_one_side", "slightly bent"),
        ("_square", "one entry"),
        ("_abilities", "another gram"),
    ],
)
def test_a_check_that_looks_at_nothing_is_caught(monkeypatch, property_, name):
    monkeypatch.setattr(LOOKER, property_, lambda self, *a: 0.0 if property_ == "_adjoint" else iter(()))
    with pytest.raises(AssertionError):
        check_wrong(BACKENDS[0], name)
