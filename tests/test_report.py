"""The report says what is in the records: figures by what is drawn in them, tables by reading them back, files whole."""

import csv
import dataclasses
import doctest
import io
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoresde.comparison import Comparison, Record, Trace, compare
from scoresde.comparison.attribution import figures as error_figures
from scoresde.comparison.file import from_json, to_json
from scoresde.comparison.report import figures, folder, statistics, tables
from scoresde.comparison.report.series import DASHES, FEW, MARKERS, MOST, Style, coloured, cost, front, labels, lines, styles
from scoresde.comparison.store import Store
from scoresde.plots import PALETTE

BUDGETS = (5, 10, 20, 50)


def record(problem: str, solver: str, n: int, value: float, metric: str = "rms", **more) -> Record:
    interval = {"low": 0.9 * value, "high": 1.2 * value} if value > 0 else {"low": value, "high": value}
    return Record(**{"path": "lam", "budget": n, "steps": n, "evaluations": n, "package": "scoresde"} | interval | more,
                  problem=problem, solver=solver, metric=metric, value=value)  # fmt: skip


def comparison(count: int = 20, problems: Sequence[str] = ("ring", "grid"), **more) -> Comparison:
    """Solver i has order 1 + i % 4 and a constant such that each order has its best range; every fifth is another's."""
    found = []
    for problem, i, n in itertools.product(problems, range(count), BUDGETS):
        order = 1 + i % 4
        value = 5.0**order * (1 + i) * n ** -float(order)
        found.append(record(problem, f"s{i}", n, value, package="diffusers" if i % 5 == 4 else "scoresde", **more))
    about = {
        "solvers": {f"s{i}": {"order": 1 + i % 4} for i in range(count)},
        "metrics": {"rms": {"better": "lower"}},
        "end": "stop",
    }
    return Comparison(tuple(found), about)


def named_lines(ax) -> dict[str, object]:
    """The lines of a solver, by its name."""
    return {line.get_gid().split("|")[0]: line for line in ax.get_lines() if "|" in (line.get_gid() or "")}


def names(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_gid() == "name"]


# Which lines are drawn, and how ---------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.tuples(st.integers(1, 9), st.floats(-5, 5)), max_size=6, unique_by=lambda p: p[0]), max_size=6),
       st.sampled_from(["lower", "higher", "zero"]))  # fmt: skip
def test_a_line_is_on_the_front_for_each_point_that_no_other_equals_with_as_few_evaluations(curves, direction):
    records = [record("ring", f"s{i}", n, v) for i, curve in enumerate(curves) for n, v in curve]
    found = front(lines(Comparison(tuple(records)), "ring", "rms"), direction)
    c = {r: cost(r.value, direction) for r in records}
    for solver in {r.solver for r in records}:
        strict = [r for r in records if r.solver == solver
                  and all(c[r] < c[o] for o in records if o is not r and o.evaluations <= r.evaluations)]  # fmt: skip
        weak = [r for r in records if r.solver == solver
                and all(c[r] <= c[o] for o in records if o.evaluations <= r.evaluations)]  # fmt: skip
        assert len(strict) <= found[solver, "lam"] <= len(weak)


def test_the_styles_of_a_panel_differ_in_more_than_colour():
    looks = [(s.pick(MARKERS), s.pick(DASHES)) for s in map(Style, range(len(MARKERS) * len(DASHES)))]
    assert len(set(looks)) == len(looks)
    assert len({Style(i).pick(MARKERS) for i in range(MOST)}) == MOST  # a dozen lines have a marker each


def test_a_solver_looks_the_same_in_every_panel_and_metric():
    first, second = figures.work_precision(comparison(9)), figures.work_precision(comparison(9), columns=1)
    looks = [
        {name: (line.get_color(), line.get_marker(), line.get_linestyle()) for name, line in named_lines(ax).items()}
        for figure in (first, second)
        for ax in figure.axes
    ]
    for one, other in itertools.combinations(looks, 2):
        assert all(one[name] == other[name] for name in one.keys() & other.keys())


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 40])
def test_few_lines_are_all_in_colour_and_of_many_the_front_and_the_chosen(count):
    chosen = [f"s{count - 1}"]
    given_ = comparison(count)
    figure = figures.work_precision(given_, highlight=chosen)
    for ax, problem in zip(figure.axes, ("ring", "grid"), strict=True):
        panel = lines(given_, problem, "rms")
        wanted = {line.solver for line in panel} if count <= FEW else {s for s, _ in front(panel)} | set(chosen)
        drawn = named_lines(ax)
        assert set(drawn) == wanted == set(names(ax)) and len(drawn) <= MOST
        assert all(line.get_color() in PALETTE for line in drawn.values())
        grey = [line for line in ax.get_lines() if line.get_label() == "_other"]
        curves = sum(math.isnan(y) for line in grey for y in line.get_ydata())  # each ends in a gap
        assert curves == count - len(wanted) and not {line.get_color() for line in grey} & set(PALETTE)
        hollow = {name for name, line in drawn.items() if line.get_markerfacecolor() == "white"}
        assert hollow == {name for name in drawn if int(name[1:]) % 5 == 4}  # another package's
    entries = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert ("others" in entries) == (count > FEW)


def test_never_more_than_a_dozen_lines_are_in_colour():
    records = [record("ring", f"s{i}", 5 + i, 1 / (1 + i)) for i in range(30)]  # all on the front
    given_ = Comparison(tuple(records))
    panel = lines(given_, "ring", "rms")
    assert len(front(panel)) == 30
    assert len(coloured(panel, styles(given_), "lower")) == MOST
    assert len(named_lines(figures.work_precision(given_).axes[0])) == MOST


def test_the_points_and_intervals_are_those_of_the_records():
    given_ = comparison(3, problems=("ring",))
    ax = figures.work_precision(given_).axes[0]
    for name, line in named_lines(ax).items():
        records = given_.select(solver=name)
        assert line.get_xydata().tolist() == [[r.evaluations, r.value] for r in records]
    bars = sorted(tuple(map(tuple, segment)) for bundle in ax.collections for segment in bundle.get_segments())
    assert bars == sorted(((r.evaluations, r.low), (r.evaluations, r.high)) for r in given_.records)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("ring", "evaluations of the model", "rms")


@pytest.mark.parametrize("count", [1, 2, FEW])
def test_intervals_at_one_number_of_evaluations_stand_side_by_side_within_a_marker(count):
    figure = figures.work_precision(comparison(count, problems=("ring",)))
    figure.draw_without_rendering()
    (ax,) = figure.axes
    places = [bundle.get_transform().transform(bundle.get_segments()[0])[0, 0] for bundle in ax.collections]
    aside = [(x - ax.transData.transform((BUDGETS[0], 1.0))[0]) / figure.dpi * 72 for x in places]
    assert sum(aside) == pytest.approx(0, abs=1e-9) and len(aside) == count
    width = named_lines(ax)["s0"].get_markersize()
    assert all(b - a > 0.1 * width for a, b in itertools.pairwise(aside)) and aside[-1] - aside[0] <= width * (1 + 1e-9)


@pytest.mark.parametrize(("factor", "least"), [(4.0, 2), (40.0, 4), (100.0, 5), (1e5, 4)])
def test_an_axis_of_powers_has_several_numbers_that_are_short(factor, least):
    values = {5: 1.3e-4 * factor, 10: 1.3e-4 * factor**0.5, 20: 1.3e-4}
    ax = figures.work_precision(Comparison(tuple(record("ring", "a", n, v) for n, v in values.items()))).axes[0]
    low, high = ax.get_ylim()
    ticks = [tick for tick in ax.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert least <= len(ticks) <= 9
    assert all(float(t.label1.get_text()) == pytest.approx(t.get_loc()) and len(t.label1.get_text()) < 7 for t in ticks)


def test_where_zero_is_the_best_sizes_are_drawn_and_an_interval_about_zero_reaches_the_floor():
    about = {"metrics": {"mmd": {"better": "zero", "unit": "squared"}}}
    values = {5: (-0.5, -0.6, -0.4), 10: (0.02, -0.01, 0.05)}
    records = [Record("ring", "a", "lam", n, n, n, "mmd", *v) for n, v in values.items()]
    ax = figures.work_precision(Comparison(tuple(records), about)).axes[0]
    assert named_lines(ax)["a"].get_ydata().tolist() == [0.5, 0.02]
    (bars,) = [bundle.get_segments() for bundle in ax.collections]
    assert [segment[:, 1].tolist() for segment in bars] == [[0.4, 0.6], [0.01, 0.05]]  # half of the least number
    assert ax.get_ylabel() == "|mmd| (squared)"


def test_numbers_below_zero_are_on_a_marked_floor_and_mostly_negative_ones_on_a_linear_axis():
    low = Comparison(
        tuple(record("ring", "a", n, v) for n, v in zip((5, 8, 10, 20, 50), (1, 0.3, 0.1, 0.04, -0.01), strict=True))
    )
    figure = figures.work_precision(low)
    assert named_lines(figure.axes[0])["a"].get_ydata()[-1] == 0.02
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["on this line: zero or less"]
    negative = Comparison(tuple(record("ring", "a", n, -1.0 / n) for n in BUDGETS))
    assert figures.work_precision(negative).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("count", [4, MOST])
def test_no_text_lies_on_another_and_every_name_is_inside_the_picture(count):
    close = [record("ring", f"a rather long name {i}", n, 1 / n * (1 + 1e-3 * i)) for i in range(count) for n in BUDGETS]
    figure = figures.work_precision(Comparison(tuple(close)), highlight=[f"a rather long name {i}" for i in range(count)])
    ax, renderer = figure.axes[0], figure._get_renderer()
    texts_ = [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        texts_ += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [text.get_window_extent(renderer) for text in texts_ if text.get_text()]
    assert len(names(ax)) == count
    assert all(0 <= text.get_position()[1] <= 1 for text in ax.texts if text.get_gid() == "name")  # beside the axes
    inside = figure.bbox
    for box in boxes:
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
    overlapping = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert not overlapping


# The other figures ----------------------------------------------------------------------------------------------------


def test_order_plots_draw_each_solver_under_its_order_with_a_triangle_of_that_slope_and_what_was_measured():
    figure = figures.orders(comparison(6), "rms", "ring")
    assert [ax.get_title() for ax in figure.axes] == [f"declared order {p}" for p in (1, 2, 3, 4)]
    for order, ax in enumerate(figure.axes, 1):
        assert {int(name[1:]) % 4 + 1 for name in named_lines(ax)} == {order}
        assert all(name.endswith(f"({order}.0)") for name in names(ax))
        (triangle,) = [line for line in ax.get_lines() if line.get_gid() == "triangle"]
        (left, top), (right, base) = triangle.get_xydata()[:2]
        assert math.log(top / base) / math.log(right / left) == pytest.approx(order)
        for line in named_lines(ax).values():  # so do the lines of the records, whose errors are exact powers
            (x0, y0), *_, (x1, y1) = line.get_xydata()
            assert math.log(y0 / y1) / math.log(x1 / x0) == pytest.approx(order)
    with pytest.raises(ValueError, match=r"no solver with an order and two numbers of steps .* expected two budgets"):
        figures.orders(Comparison(comparison(2).records))


def test_trajectories_show_every_sample_of_every_trace_in_its_solvers_look():
    x = torch.randn(5, 3, 2)
    traces = [Trace("ring", s, "lam", 10, (4.0, 3.0, 2.0, 1.0, 0.0), x + i) for i, s in enumerate(("s1", "s0"))]
    look = styles(comparison(2))
    figure = figures.trajectories(traces, torch.randn(50, 2), style=look)
    for ax, trace in zip(figure.axes, traces, strict=True):
        assert trace.solver in ax.get_title()
        assert {line.get_color() for line in ax.get_lines()} == {PALETTE[look[trace.solver, "lam"].rank]}
        for i, line in enumerate(ax.get_lines()):
            assert torch.tensor(line.get_xydata()).float().equal(trace.x[:, i])
    with pytest.raises(ValueError, match=r"expected at least one of shape \(points, samples, 2\)"):
        figures.trajectories([Trace("ring", "a", "lam", 5, (0.0,), torch.zeros(1, 3, 3))])


def test_attribution_draws_the_curves_and_decomposition_adds_up():
    curves = {"ddim": ([0.0, 1.0], [1e-3, 1e-1]), "heun": ([0.0, 1.0], [1e-5, 1e-4])}
    ax = error_figures.attribution(curves).axes[0]
    assert names(ax) and ax.get_yscale() == "log"
    drawn = {line.get_label(): line.get_xydata().T.tolist() for line in ax.get_lines() if line.get_label() in curves}
    assert drawn == {name: [list(x), list(y)] for name, (x, y) in curves.items()}
    with pytest.raises(ValueError, match="each as many points as contributions"):
        error_figures.attribution({"a": ([0.0], [])})

    parts = {"ddim": {"prior": 0.1, "score": 0.2}, "heun": {"score": 0.3, "steps": 0.05}}
    figure = error_figures.decomposition(parts)
    ax = figure.axes[0]
    ends = {bar.get_y(): 0.0 for bar in ax.patches}
    for bar in ax.patches:  # each section starts where the last one ended
        assert bar.get_x() == pytest.approx(ends[bar.get_y()])
        ends[bar.get_y()] += bar.get_width()
    assert sorted(ends.values()) == pytest.approx(sorted(sum(bar.values()) for bar in parts.values()))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["prior", "score", "steps"]
    assert len({bar.get_hatch() for bar in ax.patches}) == 3  # to be told apart without colours
    assert [text.get_text() for text in ax.texts] == ["0.3", "0.35"]
    (with_totals,) = error_figures.decomposition(parts, totals={"ddim": 0.25, "heun": 0.4}).axes
    assert [text.get_text() for text in with_totals.texts] == ["0.25", "0.4"]
    assert [list(line.get_xdata()) for line in with_totals.lines] == [[0.25] * 2, [0.4] * 2]
    assert [text.xy[0] for text in with_totals.texts] == pytest.approx([0.3, 0.4])  # behind the bar and the line
    with pytest.raises(ValueError, match=r"got totals of \['ddim'\] for parts of \['ddim', 'heun'\]; expected the same"):
        error_figures.decomposition(parts, totals={"ddim": 0.25})
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="each adding a finite number of at least 0"):
            error_figures.decomposition({"a": {"prior": bad}})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: figures.work_precision(c, "speed"), "got metric 'speed'; expected one of the comparison: rms"),
        (
            lambda c: figures.work_precision(c, problems=["moon"]),
            "got problem 'moon'; expected one of the comparison: ring, grid",
        ),
        (lambda c: figures.work_precision(c, highlight=["ddin"]), "to highlight; expected solvers of the comparison"),
        (lambda c: figures.work_precision(c, highlight=[f"s{i}" for i in range(13)]), "more than 12 lines to highlight"),
        (lambda c: figures.work_precision(Comparison(())), "it has no records"),
        (lambda c: tables.markdown(c, metric="speed"), "got metric 'speed'; expected one of the comparison: rms"),
        (lambda c: folder.write(Comparison(()), "/nowhere"), "got a comparison without records"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(comparison())


def test_without_a_finite_number_there_is_no_diagram():
    failed = record("ring", "a", 5, math.nan, error="diverged")
    with pytest.raises(ValueError, match="no finite number of 'rms'"):
        figures.work_precision(Comparison((failed,)))


# Tables ---------------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
floats = st.floats(allow_nan=False)
records = st.builds(Record, texts, texts, texts, *[st.integers(0, 10**6)] * 3, texts, floats, floats, floats, texts, texts)
about = st.dictionaries(
    texts, st.recursive(texts | floats | st.booleans() | st.none(), lambda s: st.lists(s, max_size=3)), max_size=4
)


@given(st.lists(records, max_size=5), about)
def test_json_gives_back_the_same_comparison(found, described):
    given_ = Comparison(tuple(found), described)
    text = to_json(given_)
    assert Comparison(**vars(from_json(text))) == given_
    assert not re.search(r"\b(NaN|Infinity)\b", re.sub(r'"(\\.|[^"\\])*"', "", text))  # which no other reader knows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_json_keeps_traces_and_nan(dtype):
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 0], x[1, 1, 1] = math.nan, math.inf
    failed = record("ring", "a", 5, math.nan, error="diverged")
    back = from_json(to_json(Comparison((failed,), {}, (Trace("ring", "a", "lam", 5, (1.0, 0.5, 0.0), x),))))
    (trace,) = back.traces
    assert trace.times == (1.0, 0.5, 0.0) and trace.x.dtype == dtype
    assert torch.equal(trace.x.nan_to_num(7.0), x.nan_to_num(7.0)) and torch.equal(trace.x.isnan(), x.isnan())
    assert math.isnan(back.records[0].value) and back.records[0].error == "diverged"


def test_damaged_or_foreign_json_is_refused():
    text = to_json(comparison(2))
    with pytest.raises(ValueError, match="is it cut short"):
        from_json(text[: len(text) // 2])
    with pytest.raises(ValueError, match="JSON of another format"):
        from_json("[]")
    whole = json.loads(text)
    whole["columns"][0] = "speed"
    with pytest.raises(ValueError, match="expected those of a record"):
        from_json(json.dumps(whole))


@given(st.lists(records, max_size=5))
def test_csv_holds_every_digit(found):
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(Comparison(tuple(found))), newline="")))
    assert [(float(r["value"]), int(r["budget"])) for r in rows] == [(r.value, r.budget) for r in found]
    # The csv module reads a carriage return in quotes as it stands, and so do spreadsheets.
    assert [(r["solver"], r["error"]) for r in rows] == [(r.solver, r.error) for r in found]


@given(st.floats(1e-9, 1e9), st.floats(0, 0.5))
def test_a_number_for_people_is_right_to_three_digits_with_its_interval(value, relative):
    low, high = value * (1 - relative), value * (1 + 0.5 * relative)
    text, _, interval = tables.number(value, low, high).partition(" ± ")
    assert float(text) == pytest.approx(value, rel=5.01e-3)
    assert len(re.sub(r"e.*|\D", "", text).strip("0")) <= 3
    assert bool(interval) == (low < high)
    if interval:
        assert float(interval) == pytest.approx(value - low, rel=0.06)


@pytest.mark.parametrize(("direction", "wins"), [("lower", "-2"), ("higher", "3"), ("zero", "0.5")])
def test_the_best_is_bold_first_and_a_missing_number_is_explained(direction, wins):
    found = [record("ring", f"s{v}|<b>", 5, v) for v in (3.0, 0.5, -2.0)]
    found += [
        record("ring", s, 5, math.nan, error=e) for s, e in (("late", "takes\nat least 6"), ("later", "takes\nat least 6"))
    ]
    table = tables.markdown(Comparison(tuple(found), {"metrics": {"rms": {"better": direction}}}))
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert re.findall(r"\*\*(.+?)\*\*", table) == [wins] and f"**{wins}**" in rows[0]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows) and "<" not in table  # names break no cell
    assert [row for row in rows if "none (1)" in row] == rows[-2:] and "\n(1) takes at least 6" in table
    assert "(2)" not in table


def columns(*solvers: tuple[str, float, float], metric: str = "rms", direction: str = "lower") -> Comparison:
    """One budget: a number and the half width of its interval for each solver."""
    found = [record("ring", name, 5, v, metric=metric, low=v - w, high=v + w) for name, v, w in solvers]
    return Comparison(tuple(found), {"metrics": {metric: {"better": direction}}})


@pytest.mark.parametrize(
    ("solvers", "bold"),
    [
        ([("a", 1.0, 0.1), ("b", 2.0, 0.1)], ["1"]),
        ([("a", 1.0, 0.6), ("b", 2.0, 0.6)], []),  # within the noise
        ([("a", 1.0, 0.1), ("b", 1.15, 0.1), ("c", 3.0, 0.1)], []),  # the second is, if not the third
        ([("a", 1.0, 0.1), ("b", 2.0, 1.5)], []),  # the wide interval of the other reaches the best
        ([("a", 1.0, 0.1), ("b", 1.0001, 0.1), ("c", 3.0, 0.1)], ["1", "1"]),  # the same in print
        ([("a", 1.0, 0.0), ("b", 1.2, 0.0)], ["1"]),  # exact
        ([("a", 1.0, 0.1)], []),  # the best of nothing
    ],
)
def test_no_number_is_bold_within_the_noise(solvers, bold):
    given_ = columns(*solvers)
    assert re.findall(r"\*\*(.+?)\*\*", given_.table()) == bold
    assert re.findall(r"mathbf{(.+?)}", given_.to_latex()) == bold


def test_signs_do_not_count_where_zero_is_the_best():
    near = columns(("a", -0.1, 0.05), ("b", 0.5, 0.05), direction="zero")
    assert re.findall(r"\*\*(.+?)\*\*", near.table()) == ["-0.1"]
    about = columns(("a", -0.1, 0.3), ("b", 0.5, 0.6), direction="zero")  # both reach zero
    assert "**" not in about.table()


def test_twins_share_a_line_a_row_and_a_name_except_in_what_a_run_costs():
    found = [record("ring", name, n, v / n) for name, v in (("a", 1.0), ("b", 1.0 + 1e-9), ("c", 2.0)) for n in (5, 10)]
    found += [record("ring", name, n, v, metric="time") for name, v in (("a", 1.0), ("b", 3.0), ("c", 2.0)) for n in (5, 10)]
    given_ = Comparison(tuple(found))
    assert [line.solver for line in lines(given_, "ring", "rms")] == ["a", "c"]
    assert [line.solver for line in lines(given_, "ring", "time")] == ["a", "b", "c"]
    assert names(figures.work_precision(given_).axes[0]) == ["a (+1 equal)", "c"]
    assert sorted(names(figures.work_precision(given_, "time").axes[0])) == ["a", "b", "c"]
    rows = re.findall(r"^\| (\S.*?) \| [^|]*\d", given_.table(metric="rms"), re.M)
    assert sorted(set(rows) - {"solver"}) == ["a = b", "c"]
    assert len(given_.records) == len(found)  # nothing is left out of the numbers themselves
    other = Comparison((*found, record("grid", "b", 5, 9.0)))  # a problem that only one of them has tells them apart
    assert len(lines(other, "ring", "rms")) == 3


@pytest.mark.parametrize("asked", [[], ["s3", "s18"], [f"s{i}" for i in range(13)]])
def test_solvers_that_were_asked_for_are_in_colour_if_a_panel_can_show_them(asked):
    base = comparison(20, problems=("ring",))
    given_ = Comparison(base.records, {**base.about, "asked": asked})
    drawn = set(named_lines(figures.work_precision(given_).axes[0]))
    best = {solver for solver, _ in front(lines(given_, "ring", "rms"))}
    assert drawn == best | set(asked if len(asked) <= MOST else [])
    ranks = sorted(styles(given_)[name, "lam"].rank for name in drawn)
    assert ranks == list(range(len(drawn)))  # colours are spread over the lines that are drawn


def test_latex_is_one_table_for_each_of_markdown_with_names_that_tex_can_read():
    evil = record("ring", r"a_b & {50%} #1 $x$ ~^\ <|>", 5, 1.5e-7)
    found = [evil, record("ring", "c", 5, math.nan, error="diverged")]
    found += [record("grid", "c", 5, 2.0), record("grid", "d", 5, 3.0)]
    text = Comparison(tuple(found)).to_latex()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    row = next(line for line in body.splitlines() if "a\\_b" in line)
    assert r"a\_b \& \{50\%\} \#1 \$x\$ \textasciitilde{}\textasciicircum{}\textbackslash{}" in row
    assert row.rstrip().endswith(r"\times 10^{-8}$ \\") and r"1.5 \times 10^{-7}" in row
    assert "c & -- " in body
    for line in text.splitlines():  # every row has a cell for each column
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 1


def test_pandas_gets_every_number_and_is_asked_for_where_it_is_absent(monkeypatch):
    pandas = pytest.importorskip("pandas")
    given_ = comparison(3)
    frame = given_.to_pandas()
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Record)]
    assert [Record(**row) for row in frame.to_dict("records")] == list(given_.records)
    assert frame.groupby("solver").value.min()["s0"] == min(r.value for r in given_.select(solver="s0"))
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        given_.to_pandas()
    assert pandas.__name__ == "pandas"


def test_three_metrics_are_compared_by_default():
    found = compare("gaussian", ["ddim", "ddpm"], [5], n=8, progress=False)
    assert set(found.named("metric")) == {"rms", "strong", "energy"} and found.about["asked"] == ["ddim", "ddpm"]


def test_a_path_is_named_only_where_a_solver_has_several():
    found = [record("ring", "a", 5, 1.0), record("ring", "b", 5, 1.0), record("ring", "b", 5, 1.0, path="t")]
    assert list(labels(Comparison(tuple(found))).values()) == ["a", "b, lam", "b, t"]


# The folder -----------------------------------------------------------------------------------------------------------


def test_the_report_has_every_file_it_returns_and_no_other(tmp_path):
    base = comparison(3)
    more = tuple(record("ring", "s0", n, 1 / n, metric="mode weights/2") for n in BUDGETS)
    traces = (Trace("ring", "s0", "lam", 10, (1.0, 0.0), torch.randn(2, 3, 2)),)
    given_ = Comparison(base.records + more, base.about, traces)
    paths = folder.write(given_, tmp_path / "new")
    assert set(paths) == set((tmp_path / "new").iterdir()) and len(set(paths)) == len(paths)
    assert {p.name for p in paths} >= {
        "comparison.json", "records.csv", "table.md", "table.tex", "index.html", "work-precision.png", "work-precision.svg",
        "work-precision.pdf", "orders.pdf",
        "work-precision-mode-weights-2.png", "orders.png", "trajectories.png"}  # fmt: skip
    for path in paths:
        head = path.read_bytes()[:200]
        assert head.startswith(b"\x89PNG") if path.suffix == ".png" else head
        assert path.suffix != ".svg" or b"<svg" in path.read_bytes()
    assert Comparison.load(tmp_path / "new").records == given_.records


# Whatever there is of records and traces: solvers without a number or an order, one budget, zeros, infinities, two SDEs.
some = st.sampled_from([0.0, 0.1, 5e-324, 1e-12, 1.0, 1e300, 1.7e308, -0.2, math.nan, math.inf])
pieces = st.builds(
    lambda problem, sde, solver, path, budget, lost, metric, value, width, package: Record(
        problem, solver, path, budget, max(budget - lost, 0), budget, metric, value, value - width, value + width, package,
        "" if math.isfinite(value) else "it diverged", sde),
    st.sampled_from(["ring", "a/b", "a b"]), st.sampled_from(["VP", "VE"]), st.sampled_from(["ddim", "heun", "<mine>"]),
    st.sampled_from(["lam", "own"]), st.sampled_from([1, 2, 5, 9]), st.integers(0, 1), st.sampled_from(["rms", "mmd", "my"]),
    some, st.sampled_from([0.0, 0.05]), st.sampled_from(["scoresde", "diffusers"]))  # fmt: skip
trails = st.builds(
    lambda problem, sde, solver, value: Trace(problem, solver, "lam", 10, (1.0, 0.0), torch.full((2, 3, 2), value), sde),
    st.sampled_from(["ring", "unseen"]), st.sampled_from(["VP", "VE"]), st.sampled_from(["ddim", "ddpm"]),
    st.sampled_from([0.0, 1.0, math.nan]))  # fmt: skip
described = st.fixed_dictionaries(
    {},
    optional={
        "solvers": st.dictionaries(
            st.sampled_from(["ddim", "heun", "<mine>"]),
            st.fixed_dictionaries({}, optional={"order": st.sampled_from([None, 1, 2])}),
        ),
        "metrics": st.just({"rms": {"better": "lower"}, "mmd": {"better": "zero", "unit": "squared"}}),
        "end": st.sampled_from(["flow", "stop"]),
    },
)


def drawn_small(figure, path):
    """Draw at a few pixels an inch: files of the full size take seconds each."""
    if path.suffix == ".png":
        figure.set_dpi(10)
        figure.canvas.draw()
    path.write_bytes(b"drawn")


@settings(max_examples=8)
@given(st.lists(pieces, min_size=1, max_size=12), st.lists(trails, max_size=2), described)
def test_a_report_is_made_of_what_there_is(found, trails, described):
    given_ = Comparison(tuple(found), described, tuple(trails))
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "save_figure", drawn_small)
        paths = folder.write(given_, place)
        assert len(set(paths)) == len(paths) and set(paths) == set(Path(place).iterdir())
        names_ = {p.name for p in paths}
        finite = {r.metric for r in found if math.isfinite(r.value)}
        assert len([n for n in names_ if n.startswith("work-precision") and n.endswith(".svg")]) == len(finite)
        shown = {(trace.problem, trace.sde) for trace in trails}
        assert len([n for n in names_ if n.startswith("trajectories") and n.endswith(".pdf")]) == len(shown)
        back = Comparison.load(place)
        assert str(back.records) == str(given_.records) and back._repr_markdown_()
    for metric in {r.metric for r in found}:
        statistics.orders(given_, metric)
        statistics.ranking(given_, metric, resamples=2)
        statistics.evaluations_to_reach(given_, 0.05, metric)
        statistics.pareto(given_, found[0].problem, metric)


@pytest.mark.parametrize(
    ("solvers", "budgets", "metrics"),
    [
        (["ddim", "sde-dpmpp-2m"], [10, 20], ["rms"]),  # one has no record
        (["ddim", "dpmpp-2m"], [10], ["rms", "energy"]),  # one budget: no order
        pytest.param(["dpm-12", "ddpm"], [10, 40], ["rms", "strong"], marks=pytest.mark.slow),  # no order is declared
        pytest.param(["rk4", "ddim"], [3, 4], ["rms"], marks=pytest.mark.slow),  # one has a last move alone
    ],
)
def test_a_comparison_of_any_solvers_has_a_report(tmp_path, solvers, budgets, metrics):
    found = compare("ring", solvers, budgets, metrics=metrics, n=8, sde=["vp", "ve"], progress=False)
    names_ = {p.name for p in found.report(tmp_path)}
    assert names_ >= {"table.md", "index.html", "work-precision.png", "trajectories.png", "trajectories-ring-VE.png"}
    assert ("orders.png" in names_) == (solvers == ["ddim", "sde-dpmpp-2m"] or 3 in budgets)


def test_the_sdes_of_a_problem_are_panels_of_their_own():
    two = [dataclasses.replace(r, sde=sde, value=r.value * (1 + (sde == "VE"))) for sde in ("VP", "VE")
           for r in comparison(2, problems=("ring",)).records]  # fmt: skip
    given_ = Comparison((*two, record("grid", "s0", 5, 1.0, sde="VP")), comparison(2).about)
    figure = figures.work_precision(given_)
    assert [ax.get_title() for ax in figure.axes] == ["ring, VP", "ring, VE", "grid"]
    for ax, sde in zip(figure.axes, ("VP", "VE", "VP"), strict=False):
        problem = ax.get_title().partition(",")[0]
        for name, line in named_lines(ax).items():
            wanted = given_.select(solver=name, sde=sde, problem=problem)
            assert line.get_ydata().tolist() == [r.value for r in wanted]
    assert figures.orders(given_, "rms", "ring", "VE").axes[0].get_ylabel() == "rms, ring, VE"
    table = tables.markdown(given_, "ring")
    assert re.findall("### (.*)", table) == ["ring, VP: rms", "ring, VE: rms"]
    assert {row["sde"] for row in csv.DictReader(io.StringIO(tables.to_csv(given_)))} == {"VP", "VE"}


# Hostile files --------------------------------------------------------------------------------------------------------

TOKENS = [b"{", b"}", b"[", b"]", b'"', b"null", b"-1", b"1e999", b"99999999999999999999999", b"true", b'{"float": "x"}',
          b"\xff", b"[" * 5000, b'"float32"', b"NaN", b"\\ud800", b"{}", b"[]", b'""', b","]  # fmt: skip
damage = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(TOKENS) | st.binary(max_size=3)), min_size=1, max_size=4
)


def spoilt(whole: bytes, changes) -> bytes:
    for where, length, new in changes:
        at = int(where * len(whole))
        whole = whole[:at] + new + whole[at + length :]
    return whole


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("kept")
    compare("ring", ["ddim", "ddpm"], [5, 20], metrics=["rms", "energy"], n=4, out=place, progress=False).save(place)
    return place


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage)
def test_a_comparison_file_is_read_or_refused_with_a_sentence(kept, changes):
    try:
        found = from_json(spoilt((kept / "comparison.json").read_bytes(), changes), "a.json")
    except ValueError as error:
        assert str(error).startswith("cannot read a.json") and len(str(error)) < 2000
    else:
        assert all(isinstance(r.value, float) and isinstance(r.budget, int) for r in found.records)
        assert all(len(trace.times) == len(trace.x) for trace in found.traces)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage)
def test_kept_records_are_read_or_refused_with_a_sentence(kept, changes):
    whole = (kept / "records.jsonl").read_bytes()
    first = json.loads(whole.splitlines()[0])["arguments"]
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "records.jsonl").write_bytes(spoilt(whole, changes))
        try:
            store = Store(place, lambda: first)
        except ValueError as error:
            assert re.search("cannot read|other arguments|does not start", str(error)) and len(str(error)) < 2000
        else:
            assert all(isinstance(store[key].evaluations, int) for key in store._found)
            with open(Path(place) / "records.jsonl", "rb") as file:
                assert all(line.endswith(b"\n") for line in file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w["records"][0].__setitem__(3, "ten"), r"Expected `int`, got `str`"),
        (lambda w: w["records"][0].pop(), "expected those of a record"),
        (lambda w: w["traces"][0]["x"]["shape"].__setitem__(0, 10**12), "expected as many as its shape says"),
        (lambda w: w["traces"][0]["x"].__setitem__("dtype", "load"), "in one of float16"),
        (lambda w: w["traces"][0]["times"].pop(), "expected one for each"),
        (lambda w: w.__setitem__("about", []), "Expected `object`, got `array`"),
        (lambda w: w.pop("traces"), "missing required field `traces`"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(kept, change, says):
    whole = json.loads((kept / "comparison.json").read_text())
    change(whole)
    with pytest.raises(ValueError, match=f"cannot read the text.*{says}"):
        from_json(json.dumps(whole))


def test_a_pipe_is_no_comparison(tmp_path):
    os.mkfifo(tmp_path / "comparison.json")
    with pytest.raises(ValueError, match="a pipe"):
        Comparison.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Comparison.load(tmp_path / "nothing")


def test_a_comparison_in_which_all_failed_still_has_its_tables_and_page(tmp_path):
    failed = record("ring", "a", 5, math.nan, error="diverged")
    names_ = {p.name for p in folder.write(Comparison((failed,)), tmp_path)}
    assert names_ == {"comparison.json", "records.csv", "table.md", "table.tex", "index.html"}
    assert "diverged" in Path(tmp_path / "table.md").read_text()


def test_the_code_on_the_page_that_explains_the_report_runs():
    place = Path(__file__).resolve().parents[1] / "docs" / "read_the_report.md"
    failed, run = doctest.testfile(str(place), module_relative=False)
    assert failed == 0 and run > 3
