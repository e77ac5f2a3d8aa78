"""The console command: what it prints, what it writes, how it fails."""

import contextlib
import importlib
import json
import os
import re
import struct
import subprocess
import sys

import pytest

import traceest
from traceest_adapters.cli import main

with contextlib.suppress(ImportError):  # of Unix alone
    import fcntl
    import termios

STATISTICS = ["trace", "Frobenius norm", "effective rank"]
ROWS = [("before", s) for s in STATISTICS] + [("after", s) for s in STATISTICS] + [("before and after", "alignment")]
EXTRAS = ("rich", "sklearn", "matplotlib")


@pytest.fixture(params=["jax", "torch"])
def framework(request):
    for module in (request.param, *EXTRAS):
        pytest.importorskip(module)
    return request.param


def slow_in(one, other):
    """Both frameworks, the first of them in slow runs alone."""
    return pytest.mark.parametrize("framework", [pytest.param(one, marks=pytest.mark.slow), other], indirect=True)


@pytest.fixture
def few_images(monkeypatch):
    """Kernels so small that their exact statistics take no time."""
    from traceest_adapters.demo import data

    monkeypatch.setattr(data, "N_PROBED", 6)


def run_json(capsys, *args):
    assert main(["demo", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


@slow_in("jax", "torch")
@pytest.mark.usefixtures("few_images")
def test_json_holds_every_statistic_with_its_interval_beside_the_exact_value(framework, capsys, tmp_path):
    png = tmp_path / "demo.png"
    out = run_json(capsys, "--backend", framework, "--steps", "3", "--probes", "4", "--output", str(png))

    assert (out["backend"], out["steps"], out["probes"], out["plot"]) == (framework, 3, 4, str(png))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert [(m["name"], m["n"], m["n_examples"]) for m in out["models"]] == [("GRU", 6 * 8 * 24, 6), ("MLP", 6 * 64, 6)]
    held = 0
    for model in out["models"]:
        assert [(c["when"], c["statistic"]) for c in model["comparisons"]] == ROWS
        n_b = model["n"] // model["n_examples"]
        for c in model["comparisons"]:
            kernels = 2 if c["statistic"] == "alignment" else 1
            estimate, exact = c["estimate"], c["exact"]
            low, high = estimate["ci95"]
            assert low <= estimate["value"] <= high
            assert estimate["stderr"] > 0
            assert (exact["method"], exact["stderr"]) == ("exact", 0)
            assert estimate["n_rmatvecs"] + estimate["n_matvecs"] == 4 * kernels
            assert exact["n_rmatvecs"] + exact["n_matvecs"] == n_b * kernels
            assert c["speed_up"] == pytest.approx(exact["seconds"] / estimate["seconds"])
            assert c["interval_holds_exact"] is (low <= exact["value"] <= high)
            # Ten standard errors: not a test of the coverage, but of estimate and exact meaning the same.
            assert abs(estimate["value"] - exact["value"]) < 10 * estimate["stderr"]
            held += c["interval_holds_exact"]
        assert_exact_values_agree(model)
        assert_track_ends_in_the_table(model)
    assert (out["intervals_holding_exact"], out["intervals"]) == (held, 2 * len(ROWS))


def assert_exact_values_agree(model):
    exact = {(c["when"], c["statistic"]): c["exact"]["value"] for c in model["comparisons"]}
    for when in ("before", "after"):
        trace, norm, rank = (exact[when, s] for s in STATISTICS)
        assert rank == pytest.approx((trace / norm) ** 2, rel=1e-3)
    assert 0 < exact["before and after", "alignment"] <= 1


def assert_track_ends_in_the_table(model):
    track = model["along_training"]
    assert [p["step"] for p in track] == [0, 1, 2, 3]
    for when, point in (("before", track[0]), ("after", track[-1])):
        assert point["accuracy"] == model["accuracy"][when]
        for c in model["comparisons"]:
            if c["when"] == when:
                assert point[c["statistic"]]["value"] == pytest.approx(c["estimate"]["value"], rel=1e-4)
    assert track[0]["alignment"]["value"] == pytest.approx(1, rel=1e-5)


@slow_in("torch", "jax")
@pytest.mark.usefixtures("few_images")
def test_tables_fit_eighty_columns_and_the_bar_stays_out_of_stdout(framework, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--backend", framework, "--steps", "2", "--no-plot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    assert "…" not in "".join(lines)  # nothing cut off
    assert "\x1b" not in "".join(lines)
    for model in ("GRU", "MLP"):
        assert sum(line.startswith(f"{model}, state:") for line in lines) == 1
    for statistic in STATISTICS:
        assert sum(line.startswith(f" {statistic} ") for line in lines) == 4
    assert sum(line.startswith(" alignment ") for line in lines) == 2
    assert "of 14 intervals hold the exact value" in lines[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_by_default_the_models_learn_and_every_interval_holds_its_exact_value(framework, capsys):
    out = run_json(capsys, "--backend", framework, "--no-plot")
    outside = [c for m in out["models"] for c in m["comparisons"] if not c["interval_holds_exact"]]
    assert outside == []
    assert out["intervals_holding_exact"] == 14
    assert out["seconds"] < 120
    for model in out["models"]:
        assert model["accuracy"]["after"] > 0.85
        seconds = {way: sum(c[way]["seconds"] for c in model["comparisons"]) for way in ("estimate", "exact")}
        assert seconds["exact"] > 3 * seconds["estimate"]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(framework, few_images):
    del few_images
    from traceest_adapters.demo import data, measure

    models = importlib.import_module(f"traceest_adapters.demo.{framework}_models")

    def traces(seed):
        learners = models.learners(data.load(seed), seed)
        for learner in learners:
            learner.train(1)
        kernels = [learner.kernel() for learner in learners]
        return [float(measure.estimates(K, K, 3, seed)["trace"]) for K in kernels]

    first = traces(1)
    assert traces(1) == pytest.approx(first, rel=1e-5)
    assert traces(2) != pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize(
    ("missing", "args", "cure"),
    [
        (("jax",), ["--backend", "jax"], "pip install 'traceest[demo,jax]'"),
        (("torch",), ["--backend", "torch"], "pip install 'traceest[demo,torch]'"),
        (("jax", "torch"), [], "'traceest[demo,jax]' or 'traceest[demo,torch]'"),
        (("rich",), [], "pip install 'traceest[demo]'"),
        (("sklearn", "matplotlib"), [], "scikit-learn and matplotlib not installed: pip install 'traceest[demo]'"),
    ],
)
def test_a_missing_extra_is_told_in_one_line_with_its_cure(missing, args, cure, capsys, monkeypatch):
    monkeypatch.setattr("traceest_adapters.cli.find_spec", lambda name: None if name in missing else object())
    assert main(["demo", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert cure in err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--probes", "2"], "must be at least 3, got 2"),
        (["--steps", "0"], "must be at least 1, got 0"),
        (["--steps", "many"], "invalid integer value: 'many'"),
        (["--backend", "numpy"], "invalid choice: 'numpy'"),
    ],
)
def test_bad_arguments_are_refused_by_name(args, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", *args])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert args[0] in err
    assert told in err


def test_a_folder_that_is_not_there_is_told_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("traceest_adapters.cli.find_spec", lambda name: object())
    assert main(["demo", "--output", str(tmp_path / "nowhere" / "a.png")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "that is a folder" in capsys.readouterr().err


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"traceest {traceest.__version__}\n"
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_the_command_imports_no_framework_before_it_needs_one(tmp_path):
    code = (
        "import sys, traceest_adapters.cli as c; c.main([]);"
        "sys.exit(bool({'jax', 'torch', 'rich', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


NUMBERS = [1.0, 0.0, 153712.6, 1.23456e6, 9.99995e5, 1.5e-7, 0.00123456, 0.0512345, 0.98765, -0.0123456, -1.23456e-8]
SECONDS = [3e-7, 9.96e-7, 4.2e-5, 9.94e-4, 9.96e-4, 0.00123, 0.0996, 0.5, 0.994, 0.996, 59.9, 4321.0]


def test_no_number_is_too_wide_for_its_column():
    report = pytest.importorskip("traceest_adapters.demo.report")
    measure = pytest.importorskip("traceest_adapters.demo.measure")
    for i, value in enumerate(NUMBERS):
        for spread in (0.0, abs(value) * 0.1, 10 * abs(value)):
            e = traceest.Estimate(value, spread, 3.0, n_rmatvecs=16)
            x = traceest.Estimate(NUMBERS[i - 1], 0.0, 1.0, n_rmatvecs=384)
            for j, seconds in enumerate(SECONDS):
                c = measure.Comparison("after", "effective rank", e, x, seconds, SECONDS[j - 1])
                cells = [cell.replace("\\[", "[") for cell in report._cells(c)]
                widths = dict(zip(report.COLUMNS, map(len, cells), strict=True))
                assert all(n <= report.COLUMNS[name] for name, n in widths.items()), cells


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals here")
def test_a_terminal_of_eighty_columns_shows_every_line_whole(framework, tmp_path):
    """In a terminal, where rich looks at its size and at COLUMNS."""
    code = (
        "import sys; from traceest_adapters.demo import data; data.N_PROBED = 6\n"
        f"import traceest_adapters.cli as c; sys.exit(c.main(['demo', '--backend', '{framework}', '--steps', '2', "
        "'--no-plot']))"
    )
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shell = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is gone
        while part := os.read(ours, 2**16):
            shown += part
    os.close(ours)
    assert shell.wait() == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", shown.decode()).replace("\r", "").splitlines()
    assert max(map(len, lines)) == 80
    assert "…" not in "".join(lines)
    assert sum(line.rstrip().endswith("×") for line in lines) == 14
    assert sum(line.rstrip().endswith("speed-up") for line in lines) == 2
