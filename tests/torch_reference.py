"""Every product of a PyTorch Jacobian, against one plain backward pass a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

import traceest as te

RTOL = 1e-5
"""Of a product's largest number. What is wrong is wrong by much more, float64's own error is much less."""

LEAST = 1e-10
"""What is smaller than this is rounding: of the derivative of a norm by a scale, say."""


class Outcome(NamedTuple):
    """Of one route: a number that is right, or an error."""

    route: str
    wrong: str | None = None
    refused: str | None = None


def dense(state: torch.Tensor, params: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The Jacobian (n, P) of a state that was computed with a graph."""
    leaves = list(params.values())
    rows = [torch.autograd.grad(s, leaves, retain_graph=True, materialize_grads=True) for s in state.reshape(-1)]
    return torch.stack([torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in row]) for row in rows])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Route = Callable[[Any], Any]


def routes(D: torch.Tensor, B: int) -> Iterator[tuple[str, Route, torch.Tensor]]:
    """Names, products, and what these should be for a Jacobian D of B blocks: with one probe, two, and as many as B."""
    n, P = D.shape
    blocks = D.reshape(B, -1, P)
    for k in dict.fromkeys((1, 2, B)):
        V = normal(k, n, k)
        G = torch.einsum("bnp,bnk->bkp", blocks, V.reshape(B, -1, k))
        yield f"rmatmat, {k}", lambda J, V=V: J.rmatmat(V), D.T @ V
        yield f"block_sqnorms, {k}", lambda J, V=V: J.block_sqnorms(V), G.square().sum(2)
        yield f"sketch_gram, {k}", lambda J, V=V: J.sketch_gram(V), torch.einsum("bip,cjp->bicj", G, G)
        yield f"block_rmatmat, {k}", lambda J, V=V: J.block_rmatmat(V), G
        yield f"gram_matmat, {k}", lambda J, V=V: J.gram_matmat(V), D @ (D.T @ V)
        W = normal(k, P, k)
        yield f"matmat, {k}", lambda J, W=W: J.matmat(W), D @ W
    yield "exact", lambda J: te.exact(te.gram(J)).value, D.square().sum()
    if n // B <= 8:
        norm = (D @ D.T).norm()
        yield "norm", lambda J: te.frobenius_norm(te.gram(J), n_probes=n // B, rng=0).value, norm


def compare(
    make: Callable[[], Any], D: torch.Tensor, B: int, chosen: Callable[[str], bool] = lambda _: True
) -> list[Outcome]:
    """What every route of ``make()`` gives; errors raised are outcomes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            J = make()
        except (TypeError, ValueError, NotImplementedError) as error:
            return [Outcome("make", refused=reason(error))]
        except Exception as error:  # from deep inside, which explains nothing
            return [Outcome("make", wrong=reason(error))]
        every = [route for route in routes(D, B) if chosen(route[0])]
        return [_outcome(J, *route) for route in every]


def _outcome(J: Any, name: str, product: Route, expected: torch.Tensor) -> Outcome:
    try:
        got = torch.as_tensor(product(J)).detach()
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        return Outcome(name, refused=reason(error))
    except Exception as error:  # from deep inside, which explains nothing, but for PyTorch's own of what was changed
        changed = "modified by an inplace operation" in str(error)
        return Outcome(name, **{"refused" if changed else "wrong": reason(error)})
    if got.shape != expected.shape:
        return Outcome(name, wrong=f"shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    error, scale = float((got - expected).abs().max()), float(expected.abs().max())
    return Outcome(name, wrong=None if error <= RTOL * scale + LEAST else f"off by {error:.2g} of {scale:.2g}")


def reason(error: Exception) -> str:
    """The kind of an error and the first words of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
