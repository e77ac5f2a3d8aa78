"""QR of tall matrices by blocks of rows is QR, whatever their rank, on every backend and for derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import traceest as te
from traceest import _array_api as aa

RNG = np.random.default_rng(0)
N, K = 8007, 40
"""Blocks do not divide the rows."""

MATRICES = {
    "well-conditioned": RNG.standard_normal((N, K)),
    "falling to rounding": RNG.standard_normal((N, K)) @ np.diag(0.3 ** np.arange(K)) @ RNG.standard_normal((K, K)),
    "of rank 3": RNG.standard_normal((N, 3)) @ RNG.standard_normal((3, K)),
    "zero": np.zeros((N, K)),
    "complex": RNG.standard_normal((N, K)) + 1j * RNG.standard_normal((N, K)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_tall_qr_is_orthonormal_and_gives_the_matrix_back(backend, name):
    Y, Omega = MATRICES[name], RNG.standard_normal((N, K)).astype(MATRICES[name].dtype)
    assert N * K >= aa.LARGE

    def both(Y, Omega):
        xp = aa.namespace(Y)
        return *aa.orth(xp, Y, Omega), aa.touched(xp, Y, Omega, aa.safe_scale(xp, Y))

    Q, R, touched = map(backend.host, backend.call(both, Y, Omega))
    assert np.max(np.abs(Q.conj().T @ Q - np.eye(K))) < 2e-15
    assert np.max(np.abs(Q @ R - touched)) < 2e-14
    assert np.all(np.tril(R, -1) == 0)


@pytest.mark.parametrize("rank", [60, 4])
def test_derivatives_pass_through_the_blocks(monkeypatch, rank):
    U = np.linalg.qr(RNG.standard_normal((2000, rank)))[0]
    lam = 0.8 ** np.arange(rank)
    probes = RNG.standard_normal((2000, 10))

    def by_jax(lam):
        return te.xtrace((U * lam) @ U.T, probes=jnp.asarray(probes)).value

    def by_torch(lam):
        A = (torch.from_numpy(U) * lam) @ torch.from_numpy(U.T)
        return te.xtrace(A, probes=torch.from_numpy(probes)).value

    def gradients():
        x = torch.tensor(lam, requires_grad=True)
        by_torch(x).backward()
        return np.asarray(jax.grad(by_jax)(jnp.asarray(lam))), x.grad.numpy()

    plain = gradients()
    monkeypatch.setattr(aa, "LARGE", 1000)
    for found, expected in zip(gradients(), plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_blocks_that_are_not_joined_are_caught(monkeypatch):
    monkeypatch.setattr(
        aa, "tall_qr", lambda xp, Y: (np.vstack([np.linalg.qr(B)[0] for B in np.split(Y[:8000], 8)]), 0)
    )
    Q, _ = aa.orth(np, MATRICES["well-conditioned"])
    assert np.max(np.abs(Q.conj().T @ Q - np.eye(K))) > 1
