"""Reports in every form: what is drawn where, how tables fit a terminal, and that a new form or view is one entry."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from rich.cells import cell_len

from purity_cli import cli, figures, report, store, views
from purity_cli.datasets import KINDS
from purity_cli.report import FORMATS, Column, Report, Table, console, number, text
from purity_cli.views.layers import layers
from tests.views import made

NAN = math.nan


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def drawn(what: Report, width: int, monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a terminal of so many columns is sent."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal())  # here, since pytest sets it anew for each phase of a test
        patch.delenv("NO_COLOR", raising=False)
        for name, value in {"TERM": "xterm-256color", "COLUMNS": str(width), **environment}.items():
            patch.setenv(name, value)
        return FORMATS["table"](what)


def plain(out: str) -> list[str]:
    return re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()


def example(**more: Any) -> Report:
    columns = [
        text("row"), Column("hidden", shown=False), text("made", data=False), number("f", "F", bar=True),
        number("n", "N", None), number("delta", digits=2, signed=True),
    ]  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"row": "a|b", "hidden": "x", "made": "1 x 1", "f": 0.123456789, "n": 12345, "delta": 0.5},
        {"row": "c", "hidden": None, "made": "2 x 2", "f": NAN, "n": 0, "delta": None},
    ]
    table = Table("rows", columns, rows, "A title", marks={(0, "f"): "starved"}, foot=[{"row": "Average", "f": NAN}])
    return Report([table], ["One.", "Two.", "One."], **more)


def test_markdown() -> None:
    assert FORMATS["md"](example(title="Head", lead="In short.")) == (
        "### Head\n\nIn short.\n\n**A title**\n\n"
        "| row     | made  |      F |      N | delta |\n"
        "| ------- | ----- | -----: | -----: | ----: |\n"
        "| a\\|b    | 1 x 1 | 0.123* | 12,345 | +0.50 |\n"
        "| c       | 2 x 2 |    NaN |      0 |       |\n"
        "| Average |       |    NaN |        |       |\n\n"
        "- One.\n- Two.\n"
    )


def test_csv_and_json_hold_what_programs_want() -> None:
    assert FORMATS["csv"](example()).splitlines() == [
        "row,hidden,f,n,delta",
        "a|b,x,0.123456789,12345,0.5",
        "c,,NaN,0,",
    ]
    assert json.loads(
        FORMATS["json"](example(facts={"moved": True}, lead="In short.")), parse_constant=pytest.fail
    ) == {
        "schema": "purity-report/1",
        "moved": True,
        "rows": [
            {"row": "a|b", "hidden": "x", "f": 0.123456789, "n": 12345, "delta": 0.5},
            {"row": "c", "hidden": None, "f": None, "n": 0, "delta": None},
        ],
        "notes": ["In short.", "One.", "Two."],
    }


@given(
    st.lists(st.floats(allow_infinity=False) | st.none(), min_size=1), st.text(st.characters(codec="utf-8"), max_size=9)
)
def test_csv_loses_no_digit_and_no_character(values: list[float | None], name: str) -> None:
    name = name.replace("\r", " ")
    rows = [{"name": name, "value": value} for value in values]
    written = FORMATS["csv"](Report([Table("rows", [text("name"), number("value")], rows)]))
    back = list(csv.DictReader(io.StringIO(written)))
    assert [row["name"] for row in back] == [name] * len(values)
    for row, value in zip(back, values, strict=True):
        assert row["value"] == "" if value is None else float(row["value"]) == pytest.approx(value, rel=0, nan_ok=True)


def test_a_table_goes_where_it_is_aimed_at() -> None:
    aims = ("all", "page", "people", "data")
    tables = [Table(aim, [text("name")], [{"name": f"<{aim}>"}], aim=aim) for aim in aims]  # type: ignore[arg-type]
    found = {
        layout: [aim for aim in aims if f"<{aim}>" in unescape(make(Report(tables)))]
        for layout, make in FORMATS.items()
    }
    assert found == {
        "table": ["all", "people"], "md": ["all", "page", "people"], "json": ["all", "page", "data"], "csv": ["all"],
        "html": ["all", "page", "people"],
    }  # fmt: skip


LONG = "features.denseblock4.denselayer16.conv2"


def wide(k: int = 1) -> Report:
    columns = [
        text("row"), text("layer", fold=True), number("f", "F", bar=True), number("se", drop=1),
        number("jk", "F jk", drop=1), *(number(f"n{i}", digits=None) for i in range(k)),
        number("live", digits=None, drop=2),
    ]  # fmt: skip
    line = {"row": "conv:C3", "layer": LONG, "f": 0.5, "se": 0.001, "jk": 0.501, "live": 512}
    numbers = {f"n{i}": 123_456 + i for i in range(k)}
    return Report([Table("rows", columns, [{**line, **numbers}])])


@pytest.mark.parametrize("width", [40, 60, 70, 80, 90, 100, 120])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_a_terminal_is_never_too_narrow(width: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = drawn(wide(k), width, monkeypatch)
    assert max(map(cell_len, plain(out))) <= width
    for i in range(k):
        assert f"{123_456 + i:,}" in out
    assert "0.500" in out
    folded = "".join(line[9:].split()[0] for line in plain(out) if len(line) > 9 and line[9:].split())
    assert LONG[:14] in folded


def test_first_the_bars_go_then_the_errors_then_paths_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = wide().tables
    natural = console.fitted(table, 1000, bars=True)
    assert natural[1]
    assert not natural[2]
    seen: list[tuple[bool, ...]] = []
    for width in range(120, 40, -1):
        columns, bars, folded = console.fitted(table, width, bars=True)
        state = (bars, any(c.key == "se" for c in columns), not folded, any(c.key == "live" for c in columns))
        if not seen or seen[-1] != state:
            seen.append(state)
    assert seen == [
        (True, True, True, True), (False, True, True, True), (False, False, True, True), (False, False, False, True),
        (False, False, False, False),
    ]  # fmt: skip
    assert "Too narrow for se, F jk: " in drawn(wide(), 70, monkeypatch)


def test_a_pipe_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = FORMATS["table"](wide(12))
    assert len(out.splitlines()) == 3
    assert LONG in out
    assert "\x1b" not in out
    assert "█" not in out


def test_colour_and_bars_are_for_terminals_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    out = drawn(example(), 100, monkeypatch)
    assert "\x1b[33m0.123*" in out  # yellow
    assert "░" in out
    assert "█" not in out
    assert out.count("One.") == 1
    assert "\x1b[33m" not in drawn(example(), 100, monkeypatch, NO_COLOR="1")
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert "░" not in drawn(example(), 100, monkeypatch)


@pytest.mark.parametrize(("value", "length"), [(0.0, 0), (0.5, 4), (1.0, 8), (1.5, 8)])
def test_a_bar_is_as_long_as_its_value(value: float, length: int) -> None:
    from rich.console import Console

    drawing = Console(file=io.StringIO(), width=20)
    with drawing.capture() as captured:
        drawing.print(console.bar(value))
    assert captured.get().strip() == "█" * length
    assert console.bar(0.5, hollow=True) == "░" * 4
    assert console.bar(NAN) == console.bar(None) == ""


# A new form, view or figure is one entry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    store.write(made.result("net", made.stages(2)), tmp_path / "stored")
    return "stored"


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_new_format_is_one_entry(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = (
        "score", "show", "diff", "correlate", "epochs", "sweep-threshold", "models", "layers", "datasets", "cache list",
    )  # fmt: skip
    code, _, err = call(["show", folder, "--format", "shout"], capsys)
    assert (code, "'shout' is not one of 'table', 'csv', 'md', 'json', 'html'" in err) == (2, True)
    monkeypatch.setitem(report.FORMATS, "shout", lambda one: f"{len(one.main.rows)} ROWS\n")
    for command in commands:
        assert "shout" in call([*command.split(), "--help"], capsys)[1], command
    assert call(["show", folder, "--format", "shout"], capsys) == (0, "2 ROWS\n", "")
    assert call(["sweep-threshold", "--from", folder, "--format", "shout"], capsys) == (0, "38 ROWS\n", "")
    assert call(["diff", folder, folder, "--format", "shout"], capsys) == (0, "4 ROWS\n", "")
    assert call(["datasets", "--format", "shout"], capsys) == (0, f"{len(KINDS)} ROWS\n", "")
    assert call(["models", "bundled:tiny_vgg_10", "--format", "shout"], capsys) == (0, "1 ROWS\n", "")
    assert call(["layers", "tiny_vgg_10", "--format", "shout"], capsys) == (0, "11 ROWS\n", "")
    assert call(["cache", "list", "--cache", "empty", "--format", "shout"], capsys) == (0, "0 ROWS\n", "")


def test_a_new_view_is_one_entry(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(["show", folder, "--view", "count"], capsys)[0] == 2
    table = Table("count", [number("n", digits=None), number("t", digits=None)], [{"n": 1, "t": 0.3}])
    monkeypatch.setitem(views.VIEWS, "count", lambda results, t, rate: Report([table], [f"{len(results)} at {t:g}."]))
    assert "count" in call(["show", "--help"], capsys)[1]
    code, out, _ = call(["show", folder, "--view", "count", "-t", "0.3"], capsys)
    assert code == 0
    assert "1 at 0.3." in out
    assert call(["show", folder, "--view", "count", "-t", "0.3", "--format", "csv"], capsys)[1] == "n,t\n1,0.3\n"


def test_a_new_figure_is_one_entry(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    assert call(["plot", folder, "--figure", "dots"], capsys)[0] == 2
    seen: list[int] = []

    def dots(scored: figures.Scored) -> Figure:
        seen.append(len(scored.rows))
        return Figure(figsize=(1, 1))

    monkeypatch.setitem(figures.FIGURES, "dots", dots)
    assert "dots" in call(["plot", "--help"], capsys)[1]
    code, out, _ = call(["plot", folder, "--figure", "dots", "-o", "drawn"], capsys)
    assert (code, out.split()) == (0, ["drawn/dots.png", "drawn/dots.svg"])
    assert seen == [2]


def test_the_layers_of_a_real_view_fit_80_and_60_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [made.result(name, [*made.stages(4), *made.long_names(3)]) for name in ("tf_efficientnetv2_s", "net")]
    for width in (60, 80):
        out = drawn(layers(results, 0.3), width, monkeypatch)
        assert max(map(cell_len, plain(out))) <= width
