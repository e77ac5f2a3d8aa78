# ruff: noqa: E501 — the table has a case a line
"""Bad input gets an error at the boundary that names the argument, what was given, and what to do."""

from __future__ import annotations

import array_api_strict
import numpy as np
import operators_zoo as zoo
import pytest
import torch

import traceest as te

A = zoo.spectral("poly", 30)
J = zoo.jacobian(5, 6, 20)
FORWARD = te.Operator(J.shape, like=J, matmat=lambda X: J @ X)
REVERSE = te.Operator(J.shape, like=J, rmatmat=lambda X: J.T @ X)
SQUARE_REVERSE = te.Operator(A.shape, like=A, rmatmat=lambda X: A @ X)
SQUARE_FORWARD = te.Operator(A.shape, like=A, matmat=lambda X: A @ X)
DEVICE1 = array_api_strict.asarray(np.ones((30, 4)), device=array_api_strict.Device("device1"))

CASES = {
    "oblong for a trace": (lambda: te.hutchinson(J, 5), ValueError, r"expected a square operator, got shape \(30, 20\)"),
    "oblong, the cure": (lambda: te.hutchpp(J, 5), ValueError, r"rhutch\(J\), fhutch\(J\) or trace\(gram\(J\)\)"),
    "oblong, adaptive": (lambda: te.trace(J), ValueError, r"trace: expected a square operator"),
    "oblong for a norm": (lambda: te.frobenius_norm(J, 5), ValueError, "frobenius_norm: expected a square operator"),
    "empty": (lambda: te.hutchinson(np.zeros((0, 0)), 5), ValueError, r"operator is empty, shape \(0, 0\)"),
    "vector": (lambda: te.hutchinson(np.ones(5), 5), ValueError, r"2-D array, got shape \(5,\)"),
    "integer dtype": (lambda: te.hutchinson(np.eye(30, dtype=int), 5), TypeError, "dtype int64 is not floating.*convert"),
    "boolean dtype": (lambda: te.exact(np.eye(3, dtype=bool)), TypeError, "dtype bool is not floating"),
    "integer torch": (lambda: te.exact(torch.eye(3, dtype=torch.int32)), TypeError, "int32 is not floating"),
    "no operator": (lambda: te.hutchinson("A", 5), TypeError, "cannot multiply by a str; give an array"),
    "list": (lambda: te.exact([[1.0]]), TypeError, "cannot multiply by a list"),
    "function without like": (lambda: te.trace(lambda x: x), TypeError, r"bare function needs like=.*np\.zeros\(\(n, 1\)\)"),
    "no budget": (lambda: te.hutchinson(A), TypeError, "give a budget, for instance n_matvecs=10, or explicit probes="),
    "no probes": (lambda: te.rhutch(J), TypeError, "give a budget, for instance n_probes=10"),
    "no budget, kernel": (lambda: te.effective_rank(te.gram(J)), TypeError, "effective_rank: give a budget"),
    "budget zero": (lambda: te.hutchinson(A, 0), ValueError, "n_matvecs = 0 is below the method's minimum of 1"),
    "budget negative": (lambda: te.fhutch(J, -3), ValueError, "n_probes = -3 is below the method's minimum of 1"),
    "budget of hutchpp": (lambda: te.hutchpp(A, 2), ValueError, "n_matvecs = 2 is below the method's minimum of 3"),
    "hadamard pairs": (lambda: te.frobenius_norm(te.gram(J), 4, distribution="hadamard"), ValueError, "hadamard probes are not independent"),
    "orthogonal pairs": (lambda: te.frobenius_norm(te.gram(J), 4, distribution="orthogonal"), ValueError, "bias the norm; choose rademacher"),
    "budget of a norm": (lambda: te.frobenius_norm(A, 1), ValueError, "= 1 is below the method's minimum of 2"),
    "budget float": (lambda: te.hutchinson(A, 5.0), TypeError, "n_matvecs must be an integer, got float"),
    "budget bool": (lambda: te.hutchinson(A, True), TypeError, "n_matvecs must be an integer, got bool"),
    "budget of trace": (lambda: te.trace(A, max_matvecs=0), ValueError, "max_matvecs = 0 is below"),
    "exact beyond budget": (lambda: te.trace(A, method="exact", max_matvecs=9), ValueError, "exact trace costs 30 .*allows fewer"),
    "two budgets": (lambda: te.frobenius_norm(A, 5, n_matvecs=5), TypeError, "give n_probes or n_matvecs, not both"),
    "sketch too wide": (lambda: te.hutchpp(A, 9, n_sketch=5), ValueError, "n_sketch = 5 of n_matvecs = 9 leaves -1"),
    "no sketch": (lambda: te.hutchpp(A, 9, n_sketch=0), ValueError, "n_sketch = 0 of n_matvecs = 9"),
    "chunk zero": (lambda: te.hutchinson(A, 5, chunk_size=0), ValueError, "chunk_size must be at least 1, got 0"),
    "probes of other rows": (lambda: te.hutchinson(A, probes=np.ones((29, 3))), ValueError, r"shape \(30, k\).*got \(29, 3\)"),
    "probes of the other side": (lambda: te.fhutch(J, probes=np.ones((30, 3))), ValueError, r"shape \(20, k\).*got \(30, 3\)"),
    "probes 1-D": (lambda: te.hutchinson(A, probes=np.ones(30)), ValueError, r"shape \(30, k\).*got \(30,\)"),
    "probes a list": (lambda: te.hutchinson(A, 1, probes=[[1.0]]), TypeError, r"probes must be an array, one probe a column, got list"),
    "probes and budget": (lambda: te.hutchinson(A, 4, probes=np.ones((30, 3))), ValueError, "n_matvecs = 4, but probes has 3 columns"),
    "probes of other dtype": (lambda: te.hutchinson(A, probes=np.ones((30, 3), np.float32)), TypeError, "probes have dtype float32, the operator float64; convert"),
    "probes elsewhere": (lambda: te.hutchinson(array_api_strict.asarray(A), probes=DEVICE1), TypeError, "probes are on device .*device1.*move one"),
    "probes of hutchpp": (lambda: te.hutchpp(A, 9, probes=np.ones((30, 4))), ValueError, r"4 probes with n_sketch = 2 spend 2q \+ s = 6 products, not n_matvecs = 9"),
    "budget of nystrompp": (lambda: te.nystrompp(A, 1), ValueError, "n_matvecs = 1 is below the method's minimum of 2"),
    "budget of na_hutchpp": (lambda: te.na_hutchpp(A, 3), ValueError, "n_matvecs = 3 is below the method's minimum of 4"),
    "nystrompp all sketch": (lambda: te.nystrompp(A, 9, n_sketch=9), ValueError, r"nystrompp: n_sketch = 9 of n_matvecs = 9 leaves 0.*q \+ s = n_matvecs"),
    "na_hutchpp all sketch": (lambda: te.na_hutchpp(A, 9, n_sketch=3), ValueError, r"na_hutchpp: n_sketch = 3 of n_matvecs = 9 leaves 0.*3q \+ s = n_matvecs"),
    "na_hutchpp no sketch": (lambda: te.na_hutchpp(A, 9, n_sketch=0), ValueError, "n_sketch = 0 of n_matvecs = 9 leaves 9"),
    "na_hutchpp of one side": (lambda: te.na_hutchpp(SQUARE_FORWARD, 9), TypeError, r"na_hutchpp: needs rmatmat .*for SᴴA.*symmetric=True"),
    "nystrompp one-sided": (lambda: te.nystrompp(te.gram(REVERSE), 9), TypeError, "nystrompp: needs matmat"),
    "nystrompp oblong": (lambda: te.nystrompp(J, 9), ValueError, "nystrompp: expected a square operator"),
    "no jvp": (lambda: te.fhutch(REVERSE, 5), TypeError, r"needs matmat \(forward mode, jvp\).*rhutch.*need rmatmat"),
    "no vjp": (lambda: te.rhutch(FORWARD, 5), TypeError, r"needs rmatmat \(reverse mode, vjp\).*fhutch needs matmat"),
    "hutchpp one-sided": (lambda: te.hutchpp(te.gram(REVERSE), 9), TypeError, "hutchpp: needs matmat"),
    "hutchinson of the adjoint": (lambda: te.hutchinson(SQUARE_REVERSE, 9), TypeError, "hutchinson: needs matmat"),
    "trace of the adjoint": (lambda: te.trace(SQUARE_REVERSE), TypeError, "trace: needs matmat"),
    "trace by fhutch": (lambda: te.trace(te.gram(REVERSE), method="fhutch"), TypeError, "trace: needs matmat"),
    "trace by rhutch": (lambda: te.trace(te.gram(FORWARD), method="rhutch"), TypeError, "trace: needs rmatmat"),
    "rhutch of no factor": (lambda: te.trace(A, method="rhutch"), TypeError, r"works on a Gram operator; wrap the Jacobian, trace\(gram\(J\)\)"),
    "two-sided one-sided": (lambda: te.frobenius_norm(te.gram(REVERSE), 5, method="two-sided"), TypeError, "needs matmat"),
    "one-sided without factor": (lambda: te.frobenius_norm(A, 5, method="one-sided"), TypeError, r"needs Gram operators, gram\(J\)"),
    "alignment of jvps": (lambda: te.alignment(te.gram(FORWARD), te.gram(FORWARD), 5), TypeError, "alignment: needs rmatmat"),
    "alignment of shapes": (lambda: te.alignment(A, np.eye(29), 5), ValueError, r"shapes \(30, 30\) and \(29, 29\); they must share"),
    "alignment of dtypes": (lambda: te.alignment(A, A.astype(np.float32), 5), TypeError, "dtypes float64 and float32 differ"),
    "unknown method": (lambda: te.trace(A, method="hutch"), ValueError, "method must be one of auto, exact, .*got 'hutch'"),
    "unknown route": (lambda: te.effective_rank(A, 5, method="x"), ValueError, "must be one of auto, one-sided, .* got 'x'"),
    "unknown side": (lambda: te.exact(J, side="left"), ValueError, "side must be auto, matmat or rmatmat, got 'left'"),
    "negative rtol": (lambda: te.trace(A, rtol=-1), ValueError, "rtol must be ≥ 0, got -1"),
    "NaN atol": (lambda: te.trace(A, atol=float("nan")), ValueError, "atol must be ≥ 0, got nan"),
    "no tolerance": (lambda: te.trace(A, rtol=0), ValueError, r"both 0.*call exact\(\) instead"),
    "confidence in percent": (lambda: te.trace(A, confidence=95), ValueError, "confidence must lie between 0 and 1, got 95"),
    "misspelt": (lambda: te.trace(A, rtoll=0.1), TypeError, "rtoll"),
    "misspelt product": (lambda: te.Operator((3, 3), like=A, matvec=lambda x: x), TypeError, "matvec"),
    "blocks do not divide": (lambda: te.gram(J, n_blocks=4), ValueError, "n_blocks = 4 does not divide the 30 rows"),
    "blocks of zero": (lambda: te.gram(J, n_blocks=0), ValueError, "n_blocks = 0 does not divide"),
    "blocks of a function": (lambda: te.aslinearoperator(lambda X: X, like=A, n_blocks=3), ValueError, "n_blocks= is for arrays, got a function"),
    "blocks of an operator": (lambda: te.gram(FORWARD, n_blocks=3), ValueError, "cannot be split into n_blocks = 3 from outside"),
    "distribution": (lambda: te.rhutch(J, 2, distribution="x"), ValueError, "distribution must be one of rademacher"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_with_its_cure(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, bool])
def test_no_integer_operator_enters(backend, dtype):
    with pytest.raises(TypeError, match="is not floating"):
        te.hutchinson(backend.asarray(np.eye(5, dtype=dtype)), 2, rng=0)


def test_numerical_hardness_is_no_error():
    e = te.trace(zoo.indefinite(200) - np.eye(200), rtol=1e-12, max_matvecs=20, rng=0)
    assert e.converged is False
    low, high = e.confidence_interval()
    assert high - low > 1
