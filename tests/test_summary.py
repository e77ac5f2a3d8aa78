"""`summary` gives what each statistic's call gives, from products made once, and tells layers and examples apart."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter, assert_close, assert_counts, assert_unbiased
from models import as_jax, jax_gru, jax_mlp, torch_gru, torch_mlp

import traceest as te
from traceest_adapters.jax import ntk as jax_ntk
from traceest_adapters.torch import ntk as torch_ntk

B, N_B, P = 20, 4, 60
J1, J2 = zoo.jacobian(B, N_B, P), zoo.jacobian(B, N_B, P) + 0.8 * zoo.jacobian(B, N_B, P, seed=1)
SIZES = {"body.w": 30, "body.b": 10, "head.w": 20}
Y = np.random.default_rng(5).standard_normal((B * N_B, 2))


def layered(J, **known):
    return te.gram(te.DenseOperator(J, n_blocks=B, parameters=SIZES, **known))


def part(J, group):
    start = dict(zip(SIZES, np.cumsum([0, *SIZES.values()]), strict=False))
    columns = np.concatenate([np.arange(start[name], start[name] + SIZES[name]) for name in group])
    return J[:, columns]


def cosine(K, L):
    return np.sum(K * L) / (np.linalg.norm(K) * np.linalg.norm(L))


# -- the same as asking one by one --------------------------------------------------------------------

SINGLE = {
    "vjps": ({"n_probes": 4}, layered),
    "one block": ({"n_probes": 20}, te.gram),
    "two-sided": ({"n_matvecs": 20}, lambda J: te.aslinearoperator(J @ J.T, psd=True)),
    "exact": ({"method": "exact"}, layered),
}


@pytest.mark.parametrize("how", SINGLE)
def test_it_gives_what_each_call_gives_by_itself(how):
    options, kernel = SINGLE[how]
    K, L = kernel(J1), kernel(J2)
    s = te.summary(K, L, rng=0, **options)
    for a, k in enumerate((K, L)):
        for name in ("frobenius_norm", "effective_rank"):
            alone = getattr(te, name)(k, rng=0, **options)
            if how != "two-sided":  # there the basis is a mixture of both kernels' products
                assert float(getattr(s, name).value[a]) == pytest.approx(float(alone), rel=1e-10)
                assert float(getattr(s, name).stderr[a]) == pytest.approx(float(alone.stderr), rel=1e-8)
            assert getattr(s, name).bounds == alone.bounds
    for name in ("alignment", "relative_distance"):
        alone = getattr(te, name)(K, L, rng=0, **options)
        assert float(getattr(s, name).value[0, 1]) == pytest.approx(float(alone), rel=1e-10)
        assert float(getattr(s, name).stderr[0, 1]) == pytest.approx(float(alone.stderr), rel=1e-8)
    np.testing.assert_allclose(np.diag(s.alignment.value), 1.0)
    np.testing.assert_allclose(s.alignment.value, s.alignment.value.T, rtol=1e-12)
    np.testing.assert_allclose(np.diag(s.relative_distance.value), 0.0, atol=1e-7)


@pytest.mark.parametrize("centred", [False, True])
def test_targets_and_centring_are_those_of_the_single_calls(centred):
    K, L = te.gram(J1, n_blocks=4), te.gram(J2, n_blocks=4)
    s = te.summary(K, L, n_probes=9, target=Y, centred=centred, rng=0)
    alone = te.target_alignment(L, Y, 9, centred=centred, rng=0)
    assert not s.trace.exact
    assert float(s.target_alignment.value[1]) == pytest.approx(float(alone), rel=1e-12)
    if centred:
        H = np.eye(B * N_B) - 1 / (B * N_B)
        low, high = s.trace.confidence_interval()
        assert low[0] <= np.trace(H @ J1 @ J1.T) <= high[0]


def test_a_single_kernel_has_plain_numbers_and_no_alignment():
    s = te.summary(layered(J1), n_probes=4, rng=0)
    assert s.trace.value.shape == s.effective_rank.value.shape == ()
    assert s.alignment is s.relative_distance is s.target_alignment is None
    assert s.groups == {}
    assert s.example_traces.value.shape == (B,)


def test_products_are_made_once():
    counters = [Counter(te.DenseOperator(J, n_blocks=B, parameters=SIZES)) for J in (J1, J2)]
    s = te.summary(*(te.gram(c) for c in counters), n_probes=3, groups=True, rng=0)
    assert_counts(s, *counters, budget=3)
    assert s.n_rmatvecs == 6


# -- examples -----------------------------------------------------------------------------------------


def test_each_examples_trace_is_its_own_blocks():
    truth = np.sum(J1.reshape(B, -1) ** 2, axis=1)
    exact = te.summary(layered(J1), method="exact").example_traces
    np.testing.assert_allclose(exact.value, truth, rtol=1e-12)
    assert not np.any(exact.stderr)
    runs = [te.summary(layered(J1), n_probes=3, rng=seed) for seed in range(200)]
    values = np.array([s.example_traces.value for s in runs])
    for b in range(B):
        assert_unbiased(values[:, b], truth[b])
    np.testing.assert_allclose(values.sum(axis=1), [float(s.trace) for s in runs], rtol=1e-12)
    variance = np.array([s.example_traces.stderr for s in runs]) ** 2
    assert variance.mean() == pytest.approx(values.var(axis=0, ddof=1).mean(), rel=0.1)


def test_without_blocks_no_examples_are_told_apart():
    assert te.summary(te.aslinearoperator(J1 @ J1.T), n_matvecs=20, rng=0).example_traces is None


# -- groups -------------------------------------------------------------------------------------------

GROUPINGS = {
    "every array": (True, [["body.w"], ["body.b"], ["head.w"]], ["body.w", "body.b", "head.w"]),
    "by depth": (1, [["body.w", "body.b"], ["head.w"]], ["body", "head"]),
    "by name": (lambda name: name[-1] if name != "body.b" else None, [["body.w", "head.w"]], ["w"]),
    "by mapping": ({"first": ["body.w"], "last": "head.w"}, [["body.w"], ["head.w"]], ["first", "last"]),
    "by globs": (
        {"weights": "*.w", "rest": lambda name, array: name == "body.b"},
        [["body.w", "head.w"], ["body.b"]],
        ["weights", "rest"],
    ),
    "by modules that a glob fits": ("*o?y", [["body.w", "body.b"]], ["body"]),
    "by several": (["body.b", "head"], [["body.b"], ["head.w"]], ["body.b", "head"]),
}


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("how", ["exact", "vjps"])
def test_groups_are_the_kernels_of_their_columns(grouping, how):
    asked, members, labels = GROUPINGS[grouping]
    options = {"method": "exact"} if how == "exact" else {"n_probes": 3}
    seeds = range(1 if how == "exact" else 30)
    runs = [te.summary(layered(J1), layered(J2), groups=asked, rng=seed, **options) for seed in seeds]
    assert list(runs[0].groups) == labels
    for label, group in zip(labels, members, strict=True):
        Ks = [part(J, group) @ part(J, group).T for J in (J1, J2)]
        whole = [J1 @ J1.T, J2 @ J2.T]
        truth = {
            "trace": [np.trace(K) for K in Ks],
            "frobenius_norm": [np.linalg.norm(K) for K in Ks],
            "effective_rank": [np.trace(K) ** 2 / np.linalg.norm(K) ** 2 for K in Ks],
            "alignment": [[cosine(K, L) for L in Ks] for K in Ks],
            "alignment_with_whole": [cosine(K, W) for K, W in zip(Ks, whole, strict=True)],
        }
        for name, expected in truth.items():
            values = np.array([getattr(s.groups[label], name).value for s in runs])
            if how == "exact":
                assert_close(values[0], np.array(expected), 1e-11)
            else:
                spread = np.maximum(values.std(axis=0, ddof=1), 1e-12)
                assert np.all(np.abs(values.mean(axis=0) - expected) <= spread)


def test_the_groups_traces_add_up_to_the_whole():
    s = te.summary(layered(J1), n_probes=3, groups=True, rng=0)
    assert sum(float(p.trace) for p in s.groups.values()) == pytest.approx(float(s.trace), rel=1e-12)
    few = te.summary(layered(J1), n_probes=3, groups={"head": "head.w"}, rng=0)
    assert float(few.trace) == pytest.approx(float(s.trace), rel=1e-12)
    assert float(few.groups["head"].trace) == pytest.approx(float(s.groups["head.w"].trace), rel=1e-12)


def test_swapped_groups_are_caught(monkeypatch):
    honest = te.DenseOperator.grouped_gram
    monkeypatch.setattr(te.DenseOperator, "grouped_gram", lambda self, V, groups: honest(self, V, groups)[::-1])
    with pytest.raises(AssertionError):
        test_groups_are_the_kernels_of_their_columns("every array", "exact")


# -- backends and models --------------------------------------------------------------------------------


def test_it_is_the_same_on_every_backend(backend):
    V = te.probes.rademacher(B * N_B, 3, rng=0)

    def run(A1, A2, probes):
        Ks = [te.gram(te.DenseOperator(A, n_blocks=B, parameters=SIZES)) for A in (A1, A2)]
        s = te.summary(*Ks, probes=probes, groups=1)
        found = [s.trace, s.effective_rank, s.alignment, s.example_traces, s.groups["head"].alignment_with_whole]
        return tuple(x for e in found for x in (e.value, e.stderr))

    expected = run(J1, J2, V)
    for value, truth in zip(backend.call(run, J1, J2, V), expected, strict=True):
        assert_close(backend.host(value), truth, 1e-9)


def test_a_jax_models_layers_are_those_of_its_parameters_paths():
    params, x = as_jax(torch_mlp()), jnp.asarray(np.random.default_rng(0).standard_normal((9, 6)))
    K = jax_ntk(jax_mlp, params, x)
    assert K.factor.parameters == tuple(sorted(params))
    s = te.summary(K, method="exact", groups=1)
    jac = jax.jacrev(lambda p: jax_mlp(p, x).reshape(-1))(params)
    for label, group in s.groups.items():
        leaves = [np.asarray(jac[name]).reshape(45, -1) for name in params if name.split(".")[0] == label]
        K_group = sum(J @ J.T for J in leaves)
        assert float(group.frobenius_norm) == pytest.approx(np.linalg.norm(K_group), rel=1e-10)
    few = te.summary(K, n_probes=3, groups=1, rng=0)
    assert sum(float(g.trace) for g in few.groups.values()) == pytest.approx(float(few.trace), rel=1e-10)


def test_a_jax_parameter_too_large_to_hold_is_taken_by_pairs_of_probes(monkeypatch):
    params, x = as_jax(torch_mlp()), jnp.asarray(np.random.default_rng(0).standard_normal((9, 6)))
    once = te.summary(jax_ntk(jax_mlp, params, x, chunk_size=2), n_probes=4, groups=True, rng=0)
    monkeypatch.setattr("traceest_adapters._memory.BUDGET", 1000)
    again = te.summary(jax_ntk(jax_mlp, params, x, chunk_size=2), n_probes=4, groups=True, rng=0)
    for s, t in ((once, again), *((once.groups[label], again.groups[label]) for label in once.groups)):
        assert float(s.frobenius_norm) == pytest.approx(float(t.frobenius_norm), rel=1e-12)


@pytest.mark.parametrize("groups", [True, 1])
def test_layers_are_the_same_in_both_frameworks(groups):
    module, x = torch_mlp(), np.random.default_rng(0).standard_normal((9, 6))
    s = te.summary(torch_ntk(module, torch.from_numpy(x)), n_probes=3, groups=groups, rng=0)
    t = te.summary(jax_ntk(jax_mlp, as_jax(module), jnp.asarray(x)), n_probes=3, groups=groups, rng=0)
    assert sorted(s.groups) == sorted(t.groups)
    for label, group in s.groups.items():
        for name in ("trace", "frobenius_norm", "effective_rank", "alignment_with_whole"):
            ours, theirs = getattr(group, name), getattr(t.groups[label], name)
            assert float(ours) == pytest.approx(float(theirs), rel=1e-9)
            assert float(ours.stderr) == pytest.approx(float(theirs.stderr), rel=1e-6, abs=1e-12)


def test_models_tell_the_shape_of_their_state_example_first():
    module, x = torch_gru(3, 4), torch.randn(7, 5, 3, dtype=torch.float64)
    for K in (
        torch_ntk(module, x, batch_axis=1, output=0),
        jax_ntk(jax_gru, as_jax(module), jnp.asarray(x.numpy()), batch_axis=1),
    ):
        assert K.factor.state_shape == (5, 7, 4)
    assert torch_ntk(module, x, batch_axis=None, output=0).factor.state_shape == (7, 5, 4)
    assert torch_ntk(module, x, batch_axis=1, output=lambda o: (o[0], o[0][:1])).factor.state_shape is None


def test_it_passes_through_jit_vmap_and_torchs_pytrees():
    x = jnp.asarray(J1)

    def f(scale):
        return te.summary(layered(scale * x), n_probes=3, groups=1, rng=0)

    compiled, batch = jax.jit(f)(2.0), jax.vmap(f)(jnp.asarray([1.0, 2.0]))
    assert list(compiled.groups) == ["body", "head"]
    assert float(compiled.trace) == pytest.approx(4 * float(f(1.0).trace), rel=1e-12)
    np.testing.assert_allclose(np.asarray(batch.groups["head"].trace.value)[1], float(compiled.groups["head"].trace))
    leaves, treedef = torch.utils._pytree.tree_flatten(te.summary(layered(torch.from_numpy(J1)), n_probes=3, rng=0))
    assert float(torch.utils._pytree.tree_unflatten(leaves, treedef).trace) == float(leaves[0])


# -- shown, and asked wrongly ---------------------------------------------------------------------------


def test_it_prints_a_table_and_goes_into_json():
    s = te.summary(layered(J1), layered(J2), n_probes=4, groups=1, target=None, names=("before", "after"), rng=0)
    shown = repr(s)
    for word in (
        "before",
        "after",
        "  body",
        "  head",
        "effective rank",
        "with whole",
        "alignment",
        "n_rmatvecs=8",
        "±",
    ):
        assert word in shown
    again = json.loads(json.dumps(s.to_dict()))
    assert again["names"] == ["before", "after"]
    assert again["groups"]["head"]["trace"]["value"] == s.groups["head"].trace.value.tolist()
    assert "Summary(" in repr(jax.eval_shape(lambda x: te.summary(layered(x), n_probes=3, rng=0), jnp.asarray(J1)))


WRONG = {
    "nothing": (lambda: te.summary(), TypeError, "at least one kernel"),
    "no parameters": (lambda: te.summary(te.gram(J1), n_probes=3, groups=True), TypeError, "tell parameters apart"),
    "unknown name": (
        lambda: te.summary(layered(J1), n_probes=3, groups={"a": ["x"]}),
        ValueError,
        "'x' fits no parameter",
    ),
    "twice": (
        lambda: te.summary(layered(J1), n_probes=3, groups={"a": "body.w", "b": "body.w"}),
        ValueError,
        "'body.w' is in two groups",
    ),
    "depth zero": (lambda: te.summary(layered(J1), n_probes=3, groups=0), TypeError, "positive int"),
    "names": (lambda: te.summary(layered(J1), n_probes=3, names=("a", "b")), ValueError, "1 kernels have 2 names"),
    "other states": (lambda: te.summary(layered(J1), te.gram(J1[:40]), n_probes=3), ValueError, "share their states"),
    "other parameters": (
        lambda: te.summary(layered(J1), te.gram(te.DenseOperator(J1, parameters={"w": 60})), n_probes=3, groups=1),
        ValueError,
        "of the same parameters",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_asked_wrongly_is_named_with_its_cure(wrong):
    call, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message):
        call()


def test_kernels_of_which_some_pairs_have_no_skewed_interval_are_summed_up() -> None:
    """By products alone, a kernel's own norm tells how unlucky its probes may have been, a product of two does not."""
    rng = np.random.default_rng(0)
    Ks = [te.gram(rng.standard_normal((60, 40))) for _ in range(2)]
    s = te.summary(*Ks, n_matvecs=6, rng=0)
    low, high = s.alignment.confidence_interval()
    assert low.shape == high.shape == (2, 2)
    alone = te.alignment(*Ks, n_matvecs=6, rng=0)
    np.testing.assert_allclose([low[0, 1], high[0, 1]], alone.confidence_interval(), rtol=1e-9)
