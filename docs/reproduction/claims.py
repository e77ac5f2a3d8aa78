"""What the paper claims beside what was measured, claim by claim, from the files that the figures' scripts wrote.

    python docs/reproduction/claims.py

Brings the tables of README.md, in this folder, up to date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cases import HERE, read
from figure1 import ERRORS, speed_ups
from figure4 import BY_HAND, EXACT, HUTCHPP, NAMES, PER_EXAMPLE
from ladder import METHODS, TRACE
from tables import Table, fill, markdown

SECTIONS = ("provenance", "claims", "figure1", "figure2", "figure3", "figure4")


ROUNDING = 1e-5
"""Errors below which float32 is all that is left."""


def slope(result: dict[str, Any], method: str, least: int = 12) -> float:
    """The least-squares slope of log error against log m, from m = `least` to where only rounding is left."""
    rows = [r for r in result["rows"] if r["method"] == method and r["m"] >= least and r["rms"] > ROUNDING]
    return float(np.polyfit(np.log([r["m"] for r in rows]), np.log([r["rms"] for r in rows]), 1)[0])


def wins(result: dict[str, Any], one: str, other: str, key: str) -> str:
    """Up to which `other` budget (or run time) `one` has the smaller error, in words."""
    mine, theirs = ([r for r in result["rows"] if r["method"] == name] for name in (one, other))
    better = []
    for r in theirs:
        affordable = [x["rms"] for x in mine if x[key] <= r[key] * (1 + 1e-9)]
        if affordable:
            better.append((r["m"], min(affordable) < r["rms"]))
    first_loss = next((m for m, b in better if not b), None)
    if first_loss is None:
        return f"throughout, to m = {better[-1][0]}"
    before = [m for m, _ in better if m < first_loss]
    return f"up to m = {before[-1]}" if before else "nowhere"


def tables(data: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The page's sections, by name."""
    two, three, four = data["figure2"], data["figure3"], data["figure4"]
    return {
        "provenance": _provenance(data),
        "claims": markdown(*_claims(two, three, four)),
        "figure1": markdown(*_speed_ups(two, three)),
        "figure2": markdown(*_errors(two)),
        "figure3": markdown(*_errors(three)),
        "figure4": markdown(*_classifier(four)),
    }


def _provenance(data: dict[str, dict[str, Any]]) -> str:
    one = data["figure2"]
    seeds = ", ".join(
        f"{data[f]['seeds']} for {f.replace('figure', 'figure ')}" for f in ("figure2", "figure3", "figure4")
    )
    timed = []
    for f in ("figure2", "figure3", "figure4"):
        made, n = data[f]["direct"]["products"], data[f]["n"]
        timed.append(f"all {n:,}" if made >= n else f"{made:,} of {n:,}")
    return (
        f"{one['revision']}, JAX {one['jax']}, {one['cores']} cores. Seeds: {seeds}. Products of the direct way "
        f"that were made and timed: {', '.join(timed)} (scaled up where not all). MNIST classifier: "
        f"{100 * data['figure4']['test_accuracy']:.1f} % of the held-out images right."
    )


def _claims(two: dict[str, Any], three: dict[str, Any], four: dict[str, Any]) -> Table:
    head = ["", "the paper", "here", "difference"]
    rows = [_matrix_free(three), _convergence(two, three), _few(two, three), _sides(two, three), _speed(two, three)]
    rows += [_recurrent(two, three), _statistics(four), _ours(two, three, four)]
    return "Claim by claim", [head, *([str(i + 1), *row] for i, row in enumerate(rows))]


def _matrix_free(three: dict[str, Any]) -> list[str]:
    dense, peak = 4 * three["n"] ** 2, three["peak_bytes"]
    least = min(r["rms"] for r in three["rows"] if r["method"] in METHODS)
    return [
        "NTK statistics need products alone, never the n×n matrix.",
        f"GRU: {_bytes(dense)} for the matrix in float32; the whole of figure 3 took {_bytes(peak)}, JAX and PyTorch "
        f"included, down to an error of {_pc(least)}.",
        "holds" if peak < dense else "does not hold here",
    ]


def _convergence(two: dict[str, Any], three: dict[str, Any]) -> list[str]:
    parts, good = [], []
    for c in (two, three):
        found = slope(c, "Hutch++")
        exact = [r["m"] for r in c["rows"] if r["method"] == "Hutch++" and r["rms"] <= ROUNDING]
        parts.append(f"{c['case']}: m^{found:.2f} (RHutch m^{slope(c, 'RHutch'):.2f})")
        parts[-1] += f", then exact to rounding from m = {exact[0]} on: the sketch spans the kernel" if exact else ""
        good += [c["case"]] if found <= -0.9 or exact else []
    verdict = "holds" if len(good) == 2 else f"holds for the {good[0]} alone" if good else "slower here"
    return [
        "Hutch++ converges as 1/m where the spectrum decays.",
        f"Fitted from m = 12 on: {'; '.join(parts)}.",
        verdict,
    ]


def _few(two: dict[str, Any], three: dict[str, Any]) -> list[str]:
    parts = []
    for c in (two, three):
        for method in ("RHutch", "FHutch"):
            m, t = (wins(c, method, "Hutch++", key) for key in ("m", "seconds"))
            parts.append(f"{c['case']}, {method}: by products {m}; by time {t}")
    good = sum("nowhere" not in p for p in parts)
    verdict = "holds" if good == len(parts) else "holds in part" if good else "does not hold"
    return ["One-sided estimators beat Hutch++ at few samples.", "; ".join(parts) + " (m of Hutch++).", verdict]


def _sides(two: dict[str, Any], three: dict[str, Any]) -> list[str]:
    ratio = {}
    for c in (two, three):
        rms = {m: {r["m"]: r["rms"] for r in c["rows"] if r["method"] == m} for m in ("RHutch", "FHutch")}
        shared = sorted(set(rms["RHutch"]) & set(rms["FHutch"]))
        of = np.exp(np.mean([np.log(rms["FHutch"][m] / rms["RHutch"][m]) for m in shared]))
        seconds = {m: [r["seconds"] for r in c["rows"] if r["method"] == m][-1] for m in rms}
        ratio[c["case"]] = of, seconds["FHutch"] / seconds["RHutch"]
    text = "; ".join(
        f"{name}: FHutch has {of:.2f} times RHutch's error at equal m, a jvp takes {took:.2f} times as long as a vjp, "
        f"which makes {of * took**0.5:.2f} times the error at equal time"
        for name, (of, took) in ratio.items()
    )
    gains = ratio["GRU"][0] * ratio["GRU"][1] ** 0.5 < 1, ratio["MLP"][0] * ratio["MLP"][1] ** 0.5 > 1
    verdict = "holds" if all(gains) else "holds in part" if any(gains) else "does not hold"
    return [
        "Probe the smaller side: forward mode where n > P (GRU), reverse mode where n < P (MLP).",
        text + ".",
        verdict,
    ]


def _best(speeds: dict[str, list[float | None]], i: int, of: Any = METHODS) -> tuple[float, str] | None:
    found = [(s[i], name) for name, s in speeds.items() if name in of and s[i] is not None]
    return max(found) if found else None  # type: ignore[type-var]


PAPERS = tuple(name for name in METHODS if "example" not in name)


def _speed(two: dict[str, Any], three: dict[str, Any]) -> list[str]:
    parts, most = [], 0.0
    for c in (two, three):
        speeds, exact = speed_ups(c, ERRORS), 1 / c["exact"]["of_direct"]
        for i in (0, 1):
            best = _best(speeds, i, PAPERS)
            if best is not None:
                most = max(most, best[0])
                parts.append(
                    f"{c['case']} at {100 * (1 - ERRORS[i]):.4g} %: {_x(best[0])} ({best[1]}) over direct, "
                    f"{_x(best[0] / exact)} over the best exact way"
                )
    verdict = f"{_x(most)} at the most; " + ("holds" if most >= 1e4 else "short of 10,000×")
    return [
        "Speed-ups up to 10,000× over n kernel-vector products.",
        "The paper's methods: " + ("; ".join(parts) or "99 % not reached") + ".",
        verdict + ", and only against direct",
    ]


def _recurrent(two: dict[str, Any], three: dict[str, Any]) -> list[str]:
    best = {c["case"]: _best(speed_ups(c, ERRORS), 0, PAPERS) for c in (two, three)}
    mlp, gru = (0.0 if b is None else b[0] for b in (best["MLP"], best["GRU"]))
    text = f"At 99 %, by the paper's methods: GRU {_x(gru)}, MLP {_x(mlp)}."
    return ["The gain is largest for recurrent models.", text, "holds" if gru > mlp else "does not hold"]


def _statistics(four: dict[str, Any]) -> list[str]:
    parts, good = [], 0
    for s in NAMES:
        rows = [r for r in four["rows"] if (r["statistic"], r["method"]) == (s, HUTCHPP)]
        best = min(rows, key=lambda r: r["rms"])
        good += best["rms"] < 0.01
        parts.append(f"{NAMES[s]}: {_pc(best['rms'])} in {_pc(best['of_direct'])} of the direct time")
    verdict = (
        "holds, to 1 %" if good == len(parts) else f"to 1 % in {good} of {len(parts)}, within the budgets measured"
    )
    return [
        "Norm, alignment and effective rank come by Hutch++ in a small share of the direct time, too.",
        "; ".join(parts) + ".",
        verdict,
    ]


def _ours(two: dict[str, Any], three: dict[str, Any], four: dict[str, Any]) -> list[str]:
    parts = []
    for c in (two, three):
        one = {r["m"]: r["rms"] for r in c["rows"] if r["method"] == "RHutch by example"}
        exact = c["exact"]
        parts.append(
            f"{c['case']}: one vjp by example {_pc(one[1])}; exact by {exact['vjps']:,} vjps, "
            f"{_x(1 / exact['of_direct'])} over direct"
        )
    two_vjps = {
        s: next(r for r in four["rows"] if (r["statistic"], r["method"], r["m"]) == (s, PER_EXAMPLE, 2)) for s in NAMES
    }
    parts.append("classifier, two vjps: " + ", ".join(f"{s} {_pc(r['rms'])}" for s, r in two_vjps.items()))
    return ["(not in the paper)", "; ".join(parts) + ".", "probes by example, and the exact way that they lead to"]


def _speed_ups(two: dict[str, Any], three: dict[str, Any]) -> Table:
    head = ["", *(f"{c['case']}, {100 * (1 - e):.6g} %" for c in (two, three) for e in ERRORS)]
    found = [speed_ups(c, ERRORS) for c in (two, three)]
    body = [[name, *("–" if s is None else _x(s) for speeds in found for s in speeds[name])] for name in found[0]]
    return "Speed-up over the direct trace (–: not within the budgets measured)", [head, *body]


def _errors(c: dict[str, Any], shown: tuple[int, ...] = (1, 3, 8, 32, 128, 512, 1024)) -> Table:
    head = ["", *(f"m = {m:,}" for m in shown)]
    body = []
    for method in METHODS:
        rows = {r["m"]: r for r in c["rows"] if r["method"] == method}
        cells = (f"{_pc(rows[m]['rms'])}, {_time(rows[m]['seconds'])}" if m in rows else "" for m in shown)
        body.append([method, *cells])
    adaptive = [r for r in c["rows"] if r["method"] == TRACE]
    for r in adaptive:
        ends = "exact" if r["rms"] < 1e-6 else _pc(r["rms"])
        took = f"{np.median(r['vjps']):.0f} vjps, {_time(r['seconds'])}"
        body.append([f"te.trace(rtol={r['rtol']:g})", f"{ends}, {took}", *[""] * (len(shown) - 1)])
    exact, direct = c["exact"], c["direct"]
    body.append(["exact by example", f"{exact['vjps']:,} vjps, {_time(exact['seconds'])}", *[""] * (len(shown) - 1)])
    body.append(["direct", f"{c['n']:,} products, {_time(direct['seconds'])}", *[""] * (len(shown) - 1)])
    return f"{c['case']}: rms relative error over {c['seeds']} seeds, and run time; exact trace {c['trace']:.6g}", [
        head,
        *body,
    ]


def _classifier(four: dict[str, Any]) -> Table:
    head = ["", *(f"{title}: error, time / direct" for title in NAMES.values())]
    keys = list(dict.fromkeys((r["method"], r["m"]) for r in four["rows"]))
    rows = {(r["method"], r["m"], r["statistic"]): r for r in four["rows"]}
    body = [["exact value", *(f"{four['exact_values'][s]:.5g}" for s in NAMES)]]
    for method, m in keys:
        cells = [rows[method, m, s] for s in NAMES]
        body.append([f"{method}, m = {m}", *(f"{_pc(r['rms'])}, {_pc(r['of_direct'])}" for r in cells)])
    for method in (EXACT, BY_HAND):
        times = {r["statistic"]: r["of_direct"] for r in four["exact"] if r["method"] == method}
        body.append([method, *(f"0, {_pc(times[s])}" for s in NAMES)])
    body.append(["direct", *(f"0, {_time(four['direct']['seconds'][s])}" for s in NAMES)])
    return f"MNIST classifier: rms relative error over {four['seeds']} seeds", [head, *body]


def _pc(x: float) -> str:
    return f"{100 * x:.2g} %" if 100 * x < 99.5 else f"{100 * x:.0f} %"


def _x(x: float) -> str:
    return f"{x:,.0f}×" if x >= 10 else f"{x:.2g}×"


def _time(x: float) -> str:
    return (
        f"{x:,.0f} s"
        if x >= 100
        else f"{x:.2g} s"
        if x >= 1
        else f"{1e3 * x:.2g} ms"
        if x < 0.1
        else f"{1e3 * x:.0f} ms"
    )


def _bytes(x: float) -> str:
    return f"{x / 1e9:.1f} GB"


def main(out: Path = HERE) -> None:
    """Fill the page."""
    sections = tables({name: read(out, name) for name in ("figure2", "figure3", "figure4")})
    for name in SECTIONS:
        fill(HERE / "README.md", name, sections[name])


if __name__ == "__main__":
    main()
