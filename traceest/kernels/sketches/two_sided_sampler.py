"""Products with one or several kernels: of probes alone, and of what these span too; as many as it takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest import _backends
from traceest import _validation as check
from traceest.kernels.sketches.diagonal_blocks import column_masks, diagonal_blocks
from traceest.kernels.sketches.request import Request
from traceest.kernels.sketches.sampler import SketchSampler
from traceest.kernels.sketches.two_sided import LowRank, Plain
from traceest.operators.layout import layout
from traceest.operators.metering import chunk_columns
from traceest.operators.products import completed, orth, products
from traceest.probes import Probes, of_pairs
from traceest.uncertainty.estimate import Estimate

LOW_RANK_FROM = 8
"""Products from which half of them are better spent on a basis; below, two or three probes make no low-rank part."""

FLAT = 0.1
"""Part of the error probability that may be taken before there is a basis: only a flat spectrum is told by so few."""

SETTLED = 8
"""Probes from which on the exact answer is resorted to: by then two looks have told how fast the error falls."""


class TwoSidedSampler(SketchSampler):
    """K_aΩ and, after `deflate`, K_aQ of a basis Q of the mixture Σ K_aΩ, which grows with it: nothing is dropped."""

    patience = SETTLED

    def __init__(self, Ks: list[Any], request: Request, low_rank: bool) -> None:
        for K in Ks:
            check.require_side(K, "matmat", request.caller)
        n, rows = Ks[0].shape[0], layout(Ks[0], 1)
        check.check_probes(request.probes, n, Ks[0], request.caller)
        law = request.distribution or ("sphere" if low_rank else of_pairs(rows))
        stream = Probes(n, Ks[0], rng=request.rng, distribution=law, layout=rows, probes=request.probes)
        super().__init__(Ks, request, Ks, stream)
        self.low_rank, self.chunk = low_rank, chunk_columns(Ks[0], None)
        self.V: Any = None
        self.KV: list[Any] = []
        self.units: list[Any] = []
        self.basis: tuple[Any, Any] | None = None  # Q and R of the mixture
        self.Z: list[Any] = []  # K_aQ
        self.targets: list[Any] = []

    @property
    def n_samples(self) -> int:
        """Probes so far."""
        return 0 if self.V is None else int(self.V.shape[1])

    @property
    def cost(self) -> int:
        """Products that one more probe takes: with its column of K_aQ, where there is a basis, two."""
        return len(self.Ks) * (1 if self.basis is None else 2)

    def grow(self, k: int) -> None:
        """Send k more probes through the kernels, and what they add to the span."""
        xp, first = self.xp, self.V is None
        V = self.stream.take(k)
        self.witness = V[:, :1] if first else self.witness
        KV = [self._product(a, V) for a in range(len(self.Ks))]
        if first:
            self._of_targets()
        KV = [_centred(xp, X, self.request.centred) for X in KV]
        if first:
            self.units = [xp.sum(aa.safe_scale(xp, X)) for X in KV]
            self._in_units()
        KV = [X / u for X, u in zip(KV, self.units, strict=True)]
        self.V = V if first else aa.concat_columns(xp, [self.V, V])
        self.KV = KV if first else [aa.concat_columns(xp, [X, Y]) for X, Y in zip(self.KV, KV, strict=True)]
        if self.basis is not None:
            self._extend(self.basis[0], KV, V)

    def estimate(self) -> Estimate:
        """The statistic so far."""
        e = super().estimate()
        return replace(e, share=FLAT) if self.low_rank and self.basis is None else e

    def _product(self, a: int, X: Any) -> Any:
        """K_aHX, H = I − 11ᵀ/n where K is to be centred."""
        return products(self.xp, self.meter.ops[a], _centred(self.xp, X, self.request.centred), self.chunk)

    def _of_targets(self) -> None:
        """⟨K_a, YYᴴ⟩."""
        if self.request.targets is None:
            return
        xp, Y = self.xp, self.extra[:, int(self.request.centred) :]
        forms = (aa.conj(xp, Y) * products(xp, op, Y, self.chunk) for op in self.meter.ops)
        self.targets = [aa.real(xp, xp.sum(form)) for form in forms]

    def _in_units(self) -> None:
        of_targets = zip(self.targets, self.units, strict=True) if self.targets else ()
        self.targets = [t / u / self.request.target_norm for t, u in of_targets]

    def worth_deflating(self, ahead: float, left: int) -> int:
        """One product for each that was made, for the basis of what the probes span; always, where there is room."""
        cost = self.n_samples * self.cost
        return cost if self.low_rank and self.basis is None and cost <= left else 0

    def deflate(self) -> None:
        """Send what the probes span through the kernels."""
        self.looks = []  # the error falls otherwise from here on
        Q, R, *_ = orth(sum(self.KV[1:], start=self.KV[0]), self.V)
        self.basis, self.Z = (Q, R), [self._image(a, Q) for a in range(len(self.Ks))]

    def _image(self, a: int, Q: Any) -> Any:
        return _centred(self.xp, self._product(a, Q), self.request.centred) / self.units[a]

    def _extend(self, old: Any, KV: list[Any], V: Any) -> None:
        """Complete Q, `old` so far, by what the new probes span, and K_aQ."""
        new = _backends.compiled(completed, (), (old, sum(KV[1:], start=KV[0]), V), V)
        self.Z = [aa.concat_columns(self.xp, [Z, self._image(a, new)]) for a, Z in enumerate(self.Z)]
        Q = aa.concat_columns(self.xp, [old, new])
        mixture = sum(self.KV[1:], start=self.KV[0])
        self.basis = (Q, _backends.compiled(_triangle, (), (Q, mixture, self.V), V))

    def sketch(self) -> Plain | LowRank:
        """What there is so far."""
        if self.basis is None:
            fields = {"method": "two-sided", **self.meter.spent}
            known = self.request.probes is None or self.request.distribution is not None
            doubt = self.stream.doubt_of_pairs(known)
            masks = column_masks(self.Ks[0], self.request.groups)
            blocks = diagonal_blocks(self.xp, self.V, self.KV, self.units, masks, fields=fields, doubt=doubt)
            return Plain(self.xp, self.V, self.KV, self.units, fields, self.targets, blocks, doubt)
        Q, R = self.basis
        fields = {"method": "two-sided low-rank", **self.meter.spent}
        normalise = not self.stream.law.unit_modulus
        return LowRank(self.xp, self.V, self.KV, self.Z, Q, R, normalise, self.units, fields, self.targets)

    def predicted(self, stderr: float) -> float:
        """By the power with which the error fell between the last two looks, 1 being hoped for before."""
        k, now = self.looks[-1]
        rate = 0.5 if self.basis is None else 1.0
        if len(self.looks) > 1:
            earlier, before = self.looks[-2]
            falls = 0 < now < before < math.inf and k > earlier
            rate = min(4.0, max(0.5, math.log(before / now) / math.log(k / earlier))) if falls else 0.5
        return float(k * (now / stderr) ** (1 / rate))

    # -- written down and taken up again ----------------------------------------------------------------
    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a state; those that are empty are missing."""
        return ("witness", "looks", "probes", "products", "images", "basis", "triangle", "units", "of_targets")

    def state(self) -> dict[str, Any]:
        """All that the sampler knows, by name: of several kernels their products beside each other."""
        xp = self.xp
        own = {"probes": self.V, "products": aa.concat_columns(xp, self.KV), "units": xp.stack(self.units)}
        if self.basis is not None:
            own |= {"basis": self.basis[0], "triangle": self.basis[1], "images": aa.concat_columns(xp, self.Z)}
        if self.targets:
            own["of_targets"] = xp.stack(self.targets)
        return super().state() | own

    def fits(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether the state's array of that name may have this shape and dtype."""
        long = name in ("probes", "products", "images", "basis")
        return super().fits(name, shape, dtype) and (not long or (len(shape) == 2 and shape[0] == self.stream.n))

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        k, count = state["drawn"], len(self.Ks)
        expected = {"probes": (self.stream.n, k), "products": (self.stream.n, k * count), "units": (count,)}
        if "basis" in state:
            expected |= {"basis": (self.stream.n, k), "images": (self.stream.n, k * count), "triangle": (k, k)}
        if self.request.targets is not None:
            expected["of_targets"] = (count,)
        found = {name: tuple(state[name].shape) for name in expected if name in state}
        if not k or found != expected:
            raise ValueError("its arrays and counts do not belong to one run")
        super().restore(state)

        def each(name: str) -> list[Any]:
            return [state[name][:, a * k : (a + 1) * k] for a in range(count)]

        self.V, self.KV, self.units = state["probes"], each("products"), [state["units"][a] for a in range(count)]
        self.basis = (state["basis"], state["triangle"]) if "basis" in state else None
        self.Z = each("images") if "basis" in state else []
        self.targets = [state["of_targets"][a] for a in range(count)] if self.request.targets is not None else []

    def witnessed(self) -> list[tuple[Any, Any]]:
        """K_av of the first probe, as it is now and as it was."""
        found = []
        for a, unit in enumerate(self.units):
            again = _centred(self.xp, self._product(a, self.witness), self.request.centred) / unit
            found.append((again, self.KV[a][:, :1]))
        return found


def two_sided(Ks: list[Any], request: Request) -> Plain | LowRank:
    """Send the probes of a fixed budget through every kernel, and what they span too, where it is large enough."""
    m = request.n_drawn(2) + (request.probes is None and request.centred)  # projecting needs no column of ones
    plain = request.method == "hutchinson" or request.probes is not None or request.groups is not None
    low_rank = m >= LOW_RANK_FROM and not plain
    sampler = TwoSidedSampler(Ks, request, low_rank)
    sampler.grow(m // 2 if low_rank else m)
    if low_rank:
        sampler.deflate()
    return sampler.sketch()


def _triangle(arrays: tuple[Any, Any, Any]) -> Any:
    """R of Y = QR, of an orthonormal Q that has grown with Y."""
    Q, Y, Omega = arrays
    xp = aa.namespace(Y)
    return xp.triu(aa.adjoint(xp, Q) @ aa.touched(xp, Y, Omega, aa.safe_scale(xp, Y)))


def _centred(xp: Any, X: Any, centred: bool) -> Any:
    """H X, H = I − 11ᵀ/n."""
    return X - xp.sum(X, axis=0, keepdims=True) / X.shape[0] if centred else X
