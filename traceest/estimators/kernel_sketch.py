"""The same probes through one or several kernels, on the side and by the route that fits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.estimators import exact_kernel
from traceest.estimators._metering import Meter
from traceest.estimators.ustatistics import Statistic, block_sum, pair_mean, squared_mean
from traceest.operators import Operator
from traceest.operators.base import check_compatible
from traceest.operators.blocks import n_blocks, sketch_gram
from traceest.probes import Distribution, Probes

Method = Literal["auto", "one-sided", "two-sided", "exact"]


class Sketch(NamedTuple):
    """The same probes through every kernel: their quadratic forms, and unbiased tr(K_a K_b) of all pairs.

    Kernel a is measured in its own unit, so that the squares of large and small ones stay in range.
    """

    xp: Any
    units: list[Any]
    forms: list[Any]  # vᴴK_a v, (B, m) for each kernel
    products: Any  # (a, b) ↦ Statistic of tr(K_a K_b)
    fields: dict[str, Any]

    def norm2(self, a: int) -> Statistic:
        """‖K_a‖²."""
        return self.products(a, a)

    def squared_trace(self, a: int) -> Statistic:
        """(tr K_a)²."""
        if self.fields["method"] == "exact":
            return _without_error(self.xp, self.xp.sum(self.forms[a]) ** 2)
        return squared_mean(self.xp, self.forms[a])


class Budget(NamedTuple):
    """What the caller asked for, before the kernel is known."""

    n_probes: int | None
    n_matvecs: int | None
    method: Method
    probes: Any


def sketch(kernels: list[Any], budget: Budget, rng: Any, distribution: Distribution, caller: str) -> Sketch:
    """Send the budget's probes through all kernels, on the side and by the route that fits."""
    Ks = [check.square(K, caller) for K in kernels]
    for K in Ks[1:]:
        if K.shape != Ks[0].shape:
            raise ValueError(
                f"{caller}: the kernels have shapes {Ks[0].shape} and {K.shape}; they must share their states."
            )
        check_compatible(Ks[0], K, caller)
    if budget.method not in ("auto", "one-sided", "two-sided", "exact"):
        raise ValueError(f"{caller}: method must be auto, one-sided, two-sided or exact, got {budget.method!r}.")
    if budget.n_probes is not None and budget.n_matvecs is not None:
        raise TypeError(f"{caller}: give n_probes or n_matvecs, not both.")
    if budget.method == "exact":
        return _exact(Ks, caller)
    if distribution == "orthogonal":
        raise ValueError(
            f"{caller}: orthogonal probes are not independent of each other, and pairs of them would bias the norm; "
            "choose rademacher, gaussian or sphere."
        )
    m = budget.n_probes if budget.n_matvecs is None else budget.n_matvecs
    m = check.budget(m, budget.probes, 2, "n_probes", caller)
    factors = [getattr(K, "factor", None) for K in Ks]
    if budget.method == "two-sided" or any(J is None for J in factors):
        if budget.method == "one-sided":
            raise TypeError(f"{caller}: method='one-sided' needs Gram operators, gram(J); got {Ks!r}.")
        return _two_sided(Ks, m, budget.probes, rng, distribution, caller)
    return _one_sided(Ks, m, budget.probes, rng, distribution, caller)


def _one_sided(Ks: list[Any], m: int, probes: Any, rng: Any, distribution: Distribution, caller: str) -> Sketch:
    Js = [K.factor for K in Ks]
    forward = not all(hasattr(J, "rmatmat") for J in Js)
    if forward:
        if len(Js) > 1:
            check.require_side(next(J for J in Js if not hasattr(J, "rmatmat")), "rmatmat", caller)
        J = Js[0]  # JᴴJ has the same trace and norm as JJᴴ, and its vjps are J's jvps
        Js = [Operator((J.shape[1], J.shape[0]), like=J, rmatmat=J.matmat)]
    counts = {n_blocks(J) for J in Js}
    # Kernels that tell different blocks apart share probes, not blocks: all of them are one block then.
    B = counts.pop() if len(counts) == 1 else 1
    n = Js[0].shape[0]
    if probes is None and m >= n // B:
        return _exact(Ks, caller)
    check.check_probes(probes, n, Js[0], caller)
    xp, meters = aa.namespace(Js[0]), [Meter(J) for J in Js]
    V = Probes(n, Js[0], rng=rng, distribution=distribution, n_blocks=B, probes=probes).take(m)
    G = [_as_blocks(xp, sketch_gram(meter.op, V), B, m) for meter in meters]
    scales = [aa.safe_scale(xp, g) for g in G]
    G = [g / scale for g, scale in zip(G, scales, strict=True)]
    eye = xp.eye(B * m, dtype=G[0].dtype, device=aa.device(G[0]))
    forms = [aa.real(xp, xp.reshape(xp.sum(xp.reshape(g, (B * m, B * m)) * eye, axis=1), (B, m))) for g in G]

    def products(a: int, b: int) -> Statistic:
        return pair_mean(xp, aa.real(xp, aa.conj(xp, G[a]) * G[b]))

    method = "block U-statistic" if B > 1 else "U-statistic"
    spent = _total(meters)
    if forward:
        spent = {"n_matvecs": spent["n_rmatvecs"], "n_rmatvecs": spent["n_matvecs"]}
    return Sketch(xp, [xp.sum(scale) for scale in scales], forms, products, {"method": method, **spent})


def _as_blocks(xp: Any, G: Any, B: int, m: int) -> Any:
    """G of more blocks than B = 1 summed over them: the Gram matrix of the sums of the blocks' sketches."""
    return G if G.shape[0] == B else xp.sum(G, axis=(0, 2))[None, :, None, :]


def _two_sided(Ks: list[Any], m: int, probes: Any, rng: Any, distribution: Distribution, caller: str) -> Sketch:
    for K in Ks:
        check.require_side(K, "matmat", caller)
    n = Ks[0].shape[0]
    if probes is None and m >= n:
        return _exact(Ks, caller)
    check.check_probes(probes, n, Ks[0], caller)
    xp, meters = aa.namespace(Ks[0]), [Meter(K) for K in Ks]
    V = Probes(n, Ks[0], rng=rng, distribution=distribution, probes=probes).take(m)
    KV = [meter.op.matmat(V) for meter in meters]
    scales = [aa.safe_scale(xp, Y) for Y in KV]
    KV = [Y / scale for Y, scale in zip(KV, scales, strict=True)]
    forms = [aa.real(xp, aa.vdot(xp, V, Y))[None, :] for Y in KV]

    def products(a: int, b: int) -> Statistic:
        return block_sum(xp, aa.real(xp, aa.vdot(xp, KV[a], KV[b]))[None, :])

    return Sketch(xp, [xp.sum(scale) for scale in scales], forms, products, {"method": "two-sided", **_total(meters)})


def _exact(Ks: list[Any], caller: str) -> Sketch:
    xp, meters = aa.namespace(Ks[0]), [Meter(K) for K in Ks]
    traces, products = exact_kernel.traces_and_products([meter.op for meter in meters], caller)

    def product(a: int, b: int) -> Statistic:
        return _without_error(xp, products[a, b])

    forms, units = [xp.reshape(t, (1, 1)) for t in traces], [xp.ones_like(t) for t in traces]
    return Sketch(xp, units, forms, product, {"method": "exact", **_total(meters)})


def _without_error(xp: Any, value: Any) -> Statistic:
    """An exact value: leaving out any sample changes nothing."""
    return Statistic(value, xp.ones((1, 2), dtype=value.dtype, device=aa.device(value)) * value)


def _total(meters: list[Meter]) -> dict[str, int]:
    return {"n_matvecs": sum(k.n_matvecs for k in meters), "n_rmatvecs": sum(k.n_rmatvecs for k in meters)}
