import json
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from conf.errors import printable
from pipelines.report.charts import specification
from pipelines.report.figures import draw
from pipelines.report.maps import _contours
from pipelines.report.plot import View, row_lengths, spelt
from pipelines.report.styles import COLORS, styles

METHODS = ["task_arithmetic", "ties", "dare", "average", "model_stock", "tsv_m", "iso_c", "task_arithmetic_sb",
           "ties_sb", "wudi", "iso_cts", "mine", "yours", "<script>alert(1)</script>"]  # fmt: skip


def points(panels=("a", "b"), lines=("ties", "dare"), xs=(2, 4, 8), **more):
    rows = [(p, m, x, 0.5 - 0.01 * i + 0.1 * k) for p in panels for k, m in enumerate(lines) for i, x in enumerate(xs)]
    frame = pd.DataFrame(rows, columns=["panel", "line", "x", "y"])
    return frame.assign(low=frame["y"] - 0.02, high=frame["y"] + 0.02, **more)


def references(panels=("a", "b")):
    rows = [(p, name, y) for p in panels for name, y in (("base", 0.3), ("best expert", 0.6))]
    return pd.DataFrame(rows, columns=["panel", "name", "y"])


def grid(panels=("plain", "mergopt")):
    axis = np.linspace(-0.2, 1.4, 9)
    rows = [(p, a, b, (a - 0.4) ** 2 + (b - 0.6) ** 2) for p in panels for a in axis for b in axis]
    return pd.DataFrame(rows, columns=["panel", "x", "y", "z"])


def cosines():
    names = [f"expert{i}" for i in range(12)]
    rows = [(a, b, 1.0 if a == b else 0.1 * i) for i, a in enumerate(names) for b in names]
    return pd.DataFrame(rows, columns=["x", "y", "z"])


def density():
    edges = np.linspace(-3, 3, 13)
    bars = pd.DataFrame({"line": "entries", "low": edges[:-1], "high": edges[1:], "y": 1.0})
    curve = pd.DataFrame({"line": "normal", "x": edges, "y": np.exp(-(edges**2) / 2)})
    return pd.concat([bars, curve])


def test_a_figure_is_drawn_again_where_it_would_be_another_one(tmp_path, monkeypatch):
    view = View("t", "lines", "n", "score")
    first = {path.name: path.read_bytes() for path in draw(view, points(), None, tmp_path / "f")}
    monkeypatch.setattr("vl_convert.vegalite_to_svg", lambda *_: "<svg/>")
    monkeypatch.setattr("vl_convert.svg_to_png", lambda *_, **__: b"png")
    assert {path.name: path.read_bytes() for path in draw(view, points(), None, tmp_path / "f")} == first
    (tmp_path / "f.png").unlink()
    assert draw(view, points(), None, tmp_path / "f")[0].read_bytes() == b"png"
    moved = points().assign(y=0.5)
    assert draw(view, moved, None, tmp_path / "f")[1].read_text() == "<svg/>"
    assert (tmp_path / "f.csv").read_text() != first["f.csv"].decode()


FIGURES = {
    "lines": (points(("a", "b\x1b[1m"), ("ties", "da\x00re")), references(("a", "b\x1b[1m"))),
    "bars": (points(xs=("gsm8k", "mbpp")), references()),
    "scatter": (points(xs=(1.5, 2.5), setting="λ=0.1"), None),
    "radar": (points(xs=("gsm8k", "mbpp", "alpaca_eval")), None),
    "heat": (cosines(), None),
    "contour": (grid(), None),
    "histogram": (density(), None),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_every_kind_is_drawn_the_same_each_time(kind, tmp_path):
    data, refs = FIGURES[kind]
    view = View("Figure <b> & more\ufffe", kind, "n", "score")
    first, again = (draw(view, data, refs, tmp_path / name / "figure") for name in "ab")
    assert [p.name for p in first] == ["figure.png", "figure.svg", "figure.csv", "figure.vl.json"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    told = "".join(ElementTree.fromstring(first[1].read_text()).itertext())
    assert "Figure <b> & more\\ufffe" in told
    for name in (*data.get("panel", ()), *(data.get("line", ()) if kind == "lines" else ())):
        assert printable(name) in told  # what no SVG may hold would end the process
    kept = pd.read_csv(first[2])
    measured = "z" if "z" in data else "y"
    np.testing.assert_allclose(kept[measured], data[measured], rtol=1e-5, atol=1e-12)


def marks(spec, kind):
    """The data of every layer of a kind of mark, panel by panel."""
    rows = spec.get("vconcat", [spec])
    for panel in (panel for row in rows for panel in row["hconcat"]):
        for layer in panel["layer"]:
            if layer["mark"]["type"] == kind:
                data = next(part["data"] for part in (layer, panel, *rows, spec) if "data" in part)
                yield layer, pd.DataFrame(spec["datasets"][data["name"]])


def test_points_of_lines_are_the_data():
    spec = specification(View("t", "lines", "n", "score"), *FIGURES["lines"])
    drawn = pd.concat([rows for layer, rows in marks(spec, "point")])
    pd.testing.assert_frame_equal(
        drawn[["panel", "line", "x", "y", "low", "high"]].reset_index(drop=True), spelt(FIGURES["lines"][0])
    )
    heights = [rows["y"].tolist() for _, rows in marks(spec, "rule")]
    assert heights == [[0.3, 0.6]] * 2


def test_radar_polygons_close_and_have_their_radius():
    data = points(("",), ("ties",), ("a", "b", "c", "d")).assign(y=[0.2, 0.4, 0.6, 0.8])
    spec = specification(View("t", "radar", "task", "score"), data)
    polygon = next(rows for layer, rows in marks(spec, "line") if "value" in rows)
    assert polygon[["x", "y"]].iloc[0].tolist() == polygon[["x", "y"]].iloc[-1].tolist()
    radius = np.hypot(polygon["x"], polygon["y"]) / polygon["value"]
    np.testing.assert_allclose(radius, radius.iloc[0])  # spokes begin at zero, as some scores are low


def test_contours_lie_where_the_surface_has_their_height():
    lines = _contours(grid(("plain",)), [0.2])
    height = (lines["x"] - 0.4) ** 2 + (lines["y"] - 0.6) ** 2
    np.testing.assert_allclose(height, 0.2, atol=0.012)  # linear between points of the grid
    assert len(lines) > 8


def test_one_scale_of_colours_for_all_panels():
    data = pd.concat([grid(("a",)), grid(("b",)).assign(z=lambda f: f["z"] * 3)])
    spec = specification(View("t", "contour", "α1", "α2"), data)
    domains = [layer["encoding"]["color"]["scale"]["domain"] for layer, _ in marks(spec, "rect")]
    assert domains == [[data["z"].min(), data["z"].max()]] * 2


@pytest.mark.parametrize(("panels", "most", "rows"), [(1, 3, [1]), (4, 2, [2, 2]), (5, 3, [3, 2]), (7, 3, [3, 2, 2])])
def test_rows_have_no_holes(panels, most, rows):
    assert row_lengths(panels, most) == rows
    spec = specification(View("t", "lines", "n", "score"), points([f"p{i}" for i in range(panels)]))
    drawn = [[panel["width"] for panel in row["hconcat"]] for row in spec.get("vconcat", [spec])]
    assert [len(row) for row in drawn] == rows
    total = [sum(row) + 14 * (len(row) - 1) for row in drawn]
    assert max(total) - min(total) <= 2  # every row is filled


def test_a_name_keeps_its_style_whatever_is_added():
    few = styles(["ties", "mine", "dare"])
    more = styles(["ties", "mine", "dare", "della", "slerp", "wudi", "other", *(f"ours{i}" for i in range(9))])
    assert all(more[name] == few[name] for name in few)
    looks = [(s.color, s.shape) for s in styles(METHODS).values()]
    assert len(set(looks)) == len(METHODS)
    assert {s.color for s in styles(METHODS[:7]).values()} == set(COLORS)
    assert len({s.color for s in styles(["u1", "u2", "u3", "u4", "u5"]).values()}) == 5
    parts = styles(["ties · plain", "ties · mergopt", "dare · plain"])
    assert parts["ties · plain"].color == parts["ties · mergopt"].color == few["ties"].color
    assert parts["ties · plain"].dash != parts["ties · mergopt"].dash


def test_the_legend_is_in_rank_order():
    spec = specification(View("t", "lines", "n", "score"), points(lines=("average", "ties", "mine")))
    assert [line["name"] for line in spec["usermeta"]["lines"]] == ["mine", "ties", "average"]
    assert spec["usermeta"]["bands"]
    domains = {tuple(layer["encoding"]["color"]["scale"]["domain"]) for layer, _ in marks(spec, "point")}
    assert domains == {("mine", "ties", "average")}


def test_text_can_be_read_at_half_a_page(tmp_path):
    data = points(("Llama-3.2-3B-Instruct", "Qwen3-4B"), METHODS)
    svg = draw(View("t", "lines", "n", "score"), data, references(), tmp_path / "f")[1].read_text()
    width = float(re.search(r'width="(\d+)', svg)[1])
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)]
    assert min(sizes) * (3.3 * 72 / width) >= 5  # points on paper


def test_numbers_over_decades_have_a_logarithmic_axis():
    def axis(xs, **more):
        spec = specification(View("t", "lines", "lr", "score", **more), points(("",), ("ties",), xs))
        return next(marks(spec, "point"))[0]["encoding"]["x"]["scale"]["type"]

    assert axis((1e-6, 1e-5, 1e-4)) == "log"
    assert axis((0, 1e-5, 1e-4)) == axis((2, 4, 12)) == "linear"
    assert axis((2, 4, 12), log=True) == "log"


def test_every_value_of_a_swept_axis_has_a_tick(tmp_path):
    _, svg, *_ = draw(View("t", "lines", "n", "score"), points(("",), xs=(1, 2, 4, 6, 8, 10, 12)), None, tmp_path / "f")
    told = re.findall(r">([^<>]+)</text>", svg.read_text())
    assert {"1", "2", "4", "6", "8", "10", "12"} <= set(told)


def test_subsets_are_points_that_can_be_switched_on():
    data = pd.concat([points(), points().assign(subset="math+code", low=np.nan, high=np.nan)])
    spec = specification(View("t", "lines", "n", "score"), data)
    assert spec["usermeta"]["subsets"]
    shown = [layer for layer, rows in marks(spec, "point") if (rows["subset"] == "math+code").all()]
    assert [layer["transform"][0]["filter"].startswith("subsets &&") for layer in shown] == [True, True]
    assert json.dumps(spec).count('"subset"') > 0
