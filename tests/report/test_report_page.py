"""The page of `purity report`: its numbers are those of the CSV, and what comes from outside stays text.

`test_report_browser.py` looks at it in a browser. The parser here is Python's own, which the page is not made with.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scipy.stats import spearmanr

from purity_cli import cli, paper, store
from purity_cli.report import FORMATS, Report, written
from purity_cli.results import Result
from purity_cli.store import FAILED
from purity_cli.views import board, cells, page
from purity_cli.views.diff import StoredResult, diff
from tests.views import made

HOSTILE = (
    "</script></style></title></svg>\"'><img src=x onerror=alert(1)>{{ 7*7 }}<!--&lt;\x00\x07]]>`javascript:alert(1)"
)
VOID = {"meta", "input", "img", "link", "br"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str, **attributes: str) -> list[Node]:
        return [
            one
            for one in self.walk()
            if one.tag == tag
            and all(one.attributes.get(name.rstrip("_")) == value for name, value in attributes.items())
        ]

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Tree(HTMLParser):
    """A page as a tree; every tag must be closed by its own."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(page)
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def parsed(page: str) -> Node:
    return Tree(page).root


def results(n: int = 4, name: str = "net", **more: Any) -> list[Result]:
    """Some with sizes, a measure, a silent stage, one without labels."""
    found = []
    for i in range(n):
        staged = [
            replace(layer, measures={"rankme": 10.0 / (i + 3), "alpha_req": math.nan})
            for layer in made.stages(3, silent=[2] if i == 1 else [], seed=i)
        ]
        one = made.result(f"{name}{i}", staged, top1=None if i == 3 else 100 / (i + 1.5), weights=f"{name}.pth")
        about = {
            "parameters": 1000 * i + 7, "images_per_second": 12.5, "started": f"2026-01-0{i + 1}", "command": name,
            "weights_sha256": "a" * 64, "images_skipped": [{"path": f"{name}.png", "reason": name}], "notes": [name],
        }  # fmt: skip
        found.append(replace(one, provenance={**about, **more}, dataset=f"{name} set", preprocessing=f"pixels {name}"))
    return found


def training(name: str = "net", epochs: Sequence[int] = (1, 2, 10)) -> list[Result]:
    return [
        replace(
            made.result(name, made.stages(2, seed=epoch), top1=20.0 + epoch, weights=f"{name}{epoch}.pth"),
            provenance={"epoch": epoch, "notes": [name]},
        )
        for epoch in epochs
    ]


def found(*many: Sequence[Result]) -> list[StoredResult]:
    return [StoredResult(Path(f"run{i}/{j}"), one) for i, some in enumerate(many) for j, one in enumerate(some)]


def made_page(*many: Sequence[Result], **more: Any) -> tuple[Report, Node]:
    report = page.page(found(*many), 0.5, **more)
    return report, parsed(FORMATS["html"](report))


class Page(NamedTuple):
    report: Report
    text: str
    tree: Node


@pytest.fixture(scope="module")
def whole() -> Page:
    """Four results and two trainings, one of other images."""
    others = [replace(one, dataset="other", n_images=80) for one in training("vgg")]
    report = page.page(found(results(), training(), others), 0.5)
    text = FORMATS["html"](report)
    return Page(report, text, parsed(text))


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def downloaded(tree: Node, name: str) -> str:
    (link,) = tree.all("a", download=name)
    head, _, content = str(link.attributes["href"]).partition("base64,")
    assert head == "data:text/csv;charset=utf-8;"
    return base64.b64decode(content).decode()


def table(tree: Node, key: str) -> tuple[list[str], list[list[Node]]]:
    """The keys of a table's columns and its cells."""
    (region,) = (one for one in tree.all("div", role="region") if one.attributes.get("aria-label") == key)
    (head,) = region.all("thead")
    rows = [row for body in region.all("tbody") for row in body.all("tr")]
    keys = [str(cell.attributes["data-key"]) for cell in head.all("th")]
    return keys, [[one for one in row.children if isinstance(one, Node)] for row in rows]


# Numbers


def test_every_number_of_the_table_is_that_of_the_csv_to_the_last_digit(whole: Page) -> None:
    report, _, tree = whole
    rows = read(FORMATS["csv"](report))
    assert downloaded(tree, "results.csv") == FORMATS["csv"](report)
    keys, lines = table(tree, "results")
    assert [line[0].text.strip() for line in lines] == [row["model"] for row in rows]
    numbers = 0
    for line, row in zip(lines, rows, strict=True):
        for key, cell in zip(keys, line, strict=True):
            if "n" in str(cell.attributes["class"]).split():
                assert (cell.attributes.get("data-value") or "") == row[key], key
                assert (cell.attributes.get("data-error") or "") == row.get(f"{key}_se", ""), key
                numbers += bool(row[key])
    assert numbers > 60
    # Every column that the CSV has is on the page, as a column or as an error beside one.
    held = {key for row in rows for key, value in row.items() if value}
    assert {*keys, *(f"{key}_se" for key in keys)} >= held


def test_what_people_read_is_that_number_rounded(whole: Page) -> None:
    report, _, tree = whole
    (board, *_) = report.tables
    digits = {column.key: column.digits for column in board.columns}
    keys, lines = table(tree, "results")
    for row, line in zip(board.rows, lines, strict=True):
        for key, cell in zip(keys, line, strict=True):
            sign = "*" if "starved" in str(cell.attributes["class"]) else ""
            error = row.get(f"{key}_se")
            beside = "" if error is None or math.isnan(error) else f"±{written(error, digits[key])}"
            assert cell.text.strip() == written(row.get(key), digits[key]) + sign + beside


def test_the_numbers_are_those_of_the_folders(tmp_path: Path) -> None:
    """A row of each layer, and of each result, as `purity.csv` in the folder of each has them."""
    stored = results()
    for i, one in enumerate(stored):
        store.write(one, tmp_path / str(i))
    report, tree = made_page(stored)
    layers, board = read(downloaded(tree, "layers.csv")), read(downloaded(tree, "results.csv"))
    for i, name in enumerate(cells.names(stored)):
        theirs = {
            row["layer"]: row
            for row in read((tmp_path / str(i) / "purity.csv").read_text())
            if row["threshold"] == "0.5"
        }
        mine = [row for row in layers if row["model"] == name]
        assert len(mine) == len(theirs) == 3
        for row in mine:
            for key, value in theirs[row["layer"]].items():  # the jackknife of one threshold alone rounds otherwise
                exact = key not in ("se", "purity_jk", "average")
                assert row[key] == value or (not exact and float(row[key]) == pytest.approx(float(value), nan_ok=True))
            assert board[i][row["stage"]] == row["purity"]
            assert board[i][f"{row['stage']}_se"] == row["se"]
        assert (board[i]["last"], board[i]["top1"]) == (mine[-1]["purity"], mine[-1]["top1"])
        assert board[i]["Average"] == mine[0]["average"]
        panel = tree.all("div", id=f"result-{i + 1}")[0]
        keys, lines = table(panel, "layers")
        for row, line in zip(mine, lines, strict=True):
            shown = {key: cell.attributes.get("data-value") for key, cell in zip(keys, line, strict=True)}
            for key in ("purity", "purity_rate", "activations", "live", "rankme"):
                assert shown[key] == row[key]
    assert report.tables[0].rows[1]["top1_se"] == pytest.approx(100 * math.sqrt(0.4 * 0.6 / 400))


def test_what_cannot_be_trusted_is_starred_with_its_number() -> None:
    some = results(2)
    tree = parsed(FORMATS["html"](page.page(found(some), 0.7)))
    keys, lines = table(tree, "results")
    shown = [dict(zip(keys, line, strict=True)) for line in lines]
    starred = 0
    for i, layer in ((place, layer) for place in (0, 1) for layer in some[place].layers):
        fired = int(layer.counts[:, some[i].thresholds.index(0.7)].sum())
        cell = shown[i][str(layer.stage)]
        assert ("starved" in str(cell.attributes["class"])) == (0 < fired < 5 * 24)
        if 0 < fired < 5 * 24:
            starred += 1
            assert f"N = {fired} < 5 c = 120" in str(cell.attributes["title"])
            assert str(layer.stage) in str(shown[i]["Average"].attributes["title"])
    assert 0 < starred < 5
    assert "N < 5 c where a * stands, so that F is biased low" in tree.text
    assert shown[1]["C2"].text.strip() == shown[1]["Average"].text.strip() == "NaN"
    assert "Nothing fires at the threshold 0.7." in str(shown[1]["C2"].attributes["title"])


def test_ranks_and_their_correlations_are_scipys() -> None:
    some = results(7)
    rows = [row for row in cells.every_row(some, 0.5) if row.get("deepest")]
    found_ = board.board(some, cells.every_row(some, 0.5), 0.5)
    plot, part = board.compared([replace(one, dataset="one") for one in some], found_.tables[0])
    assert (plot.x, plot.y, set(plot.groups)) == ("top1", "last", {"one"})
    both = [(row["purity"], row["top1"]) for row in rows if row["top1"] is not None]
    expected = spearmanr(*zip(*both, strict=True)).statistic
    assert plot.rho["one"]["last"]["top1"] == plot.rho["one"]["top1"]["last"] == pytest.approx(expected)
    assert "alpha_req" not in plot.rho["one"]  # it is NaN in all
    summary, ranked = part.tables
    (line,) = (row for row in summary.rows if row["quantity"] == "last")
    assert (line["n_top1"], line["rho_top1"]) == (6, pytest.approx(expected))
    best = max(range(7), key=lambda i: rows[i]["purity"])
    assert [row["model"] for row in ranked.rows if row["last"] == 1] == [f"net{best}"]


def test_the_charts_hold_the_numbers() -> None:
    one = results()[0]
    (panel,) = (part for part in page.page(found([one]), 0.5).parts if part.folded)
    curve, sweep, *strips = panel.charts
    (line,) = curve.data["lines"]
    rows = cells.rows([one], 0.5)
    assert [point[:2] for point in line["points"]] == [[i + 1, round(row["purity"], 4)] for i, row in enumerate(rows)]
    assert [point[2] for point in line["points"]] == [round(1.96 * row["se"], 4) for row in rows]
    assert [bool(point[3]) for point in line["points"]] == [row["activations"] < 5 * 24 for row in rows]
    every = [row for row in cells.rows([one]) if row["label"] == "C2" and not math.isnan(row["purity"])]
    points = next(line["points"] for line in sweep.data["lines"] if line["name"] == "C2")
    assert [point[:2] for point in points] == [[row["threshold"], round(row["purity"], 4)] for row in every]
    for strip, layer in zip(strips, one.layers, strict=True):
        assert strip.data["counts"] == layer.counts[:, one.thresholds.index(0.5)].sum(0).tolist()


# What stands beside them


def test_what_to_be_careful_about_is_of_these_results(whole: Page) -> None:
    tree = whole.tree
    heads = {head.text: section for section in tree.all("section") for head in section.all("h2")}
    careful = heads["What to be careful about"].text
    for sentence in (
        "3 different data sets (net set, photos, other): compare within one", "numbers of images (400, 80)",
        "1 result of 10 without accuracy", "Checkpoints of one training depend on each other (net, vgg)",
        "Nothing fires at any threshold, so that F is NaN: 1 layer of net1", "unreadable image",
    ):  # fmt: skip
        assert sentence in careful, sentence
    assert len(heads["How to read this"].all("li")) == len(board.READING)
    assert {"Training of vgg", "Ranks side by side", "Each result"} <= set(heads)
    assert "keeps epoch" in heads["Training of vgg"].text
    alone = made_page(results(1))[1]
    assert "Ranks side by side" not in alone.text
    assert not alone.all("figure", class_="plot")


def test_a_suite_is_beside_the_paper_by_reading() -> None:
    ours = [replace(made.result("resnet50", made.stages(5)), dataset="imagenet-sample")]
    elsewhere = [replace(one, dataset="photos") for one in ours]
    titles = [part.title for part in paper.beside(ours, 0.5)]
    assert titles == ["Beside the paper: table1", "Beside the paper: table2"]
    assert paper.beside(elsewhere, 0.5) == []
    _, tree = made_page(elsewhere, beside=paper.beside(elsewhere, 0.5, ["table1"]))
    assert "Beside the paper: table1" in {head.text for head in tree.all("h2")}


# Nothing from outside becomes markup


def hostile(name: str) -> Node:
    """A page with this text wherever text can come from outside."""
    metric = {"metric": name, "convention": name, "reference": name}
    nets = [
        replace(
            one,
            source=name,
            provenance={**one.provenance, name: {name: [name]}, "metrics": [metric]},
            layers=(*one.layers, replace(made.layer(name), measures={name: 1.0})),
        )
        for one in results(name=name)
    ]
    report = page.page(found(nets, training(name)), 0.5, failures=[name], pictures={0: [(name, b"\x89PNG")]})
    return parsed(FORMATS["html"](report))


def shape(tree: Node) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.tag, tuple(one.attributes)) for one in tree.walk()]


def test_hostile_names_are_text_and_nothing_else() -> None:
    tree, harmless = hostile(HOSTILE), hostile("x" * len(HOSTILE))
    assert shape(tree) == shape(harmless)
    readable = HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    assert readable in tree.all("section")[0].text
    for one in tree.walk():
        assert not [name for name in one.attributes if name.startswith("on")]
        for name in ("href", "src"):
            address = one.attributes.get(name)
            assert address is None or re.match(r"#[\w-]+$|data:(text/csv|image/png);", address), address
    data = [json.loads(one.text) for one in tree.all("script", type="application/json")]
    (plot,) = (one for one in data if "groups" in one)
    assert any(HOSTILE.strip() in group for group in plot["groups"])
    assert any(HOSTILE.strip() in line["name"] for one in data for line in one.get("lines", ()))


def test_the_same_of_a_diff(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pages = []
    for name in (HOSTILE, "x" * len(HOSTILE)):
        old, new = (
            [StoredResult(Path("a"), replace(one, provenance={name: seed}))]
            for seed, one in enumerate(results(1, name=name) * 2)
        )
        pages.append(parsed(FORMATS["html"](diff(old, new, failures=[name]).report())))
    assert shape(pages[0]) == shape(pages[1])
    for i, seed in enumerate((0, 5)):
        store.write(made.result("net", made.stages(2, seed=seed)), tmp_path / str(i))
    assert cli.run(["diff", str(tmp_path / "0"), str(tmp_path / "1"), "--format", "html"]) == 4
    tree = parsed(capsys.readouterr().out)
    assert "Purity: regression" in tree.all("h1")[0].text
    keys, lines = table(tree, "cells")
    rows = read(downloaded(tree, "cells.csv"))
    for row, line in zip(rows, lines, strict=True):
        shown = {key: cell.attributes.get("data-value") for key, cell in zip(keys, line, strict=True)}
        assert (shown["old"], shown["new"], shown["difference"]) == (row["old"], row["new"], row["difference"])
    assert {line[-1].text.strip() for line in lines} == {"moved"}


def test_the_page_lets_run_no_script_but_its_own_and_loads_nothing(whole: Page) -> None:
    _, text, tree = whole
    (policy,) = (one.attributes["content"] for one in tree.all("meta") if one.attributes.get("http-equiv"))
    (script,) = (one.text for one in tree.all("script") if "type" not in one.attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"https?://", re.sub(r"http://www\.w3\.org/2000/svg", "", text))


def test_ids_are_there_once_and_labels_lead_to_them(whole: Page) -> None:
    tree = whole.tree
    ids = [one.attributes["id"] for one in tree.walk() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for one in tree.walk():
        for name in ("data-for", "aria-labelledby"):
            assert one.attributes.get(name, ids[0]) in ids
        if "download" not in one.attributes:
            assert (one.attributes.get("href") or "#")[1:] in ["", *ids]
        for used in re.findall(r"url\(#([^)]+)\)", " ".join(filter(None, one.attributes.values()))):
            assert used in ids
        assert one.tag != "svg" or one.attributes.get("role") == "img"
        assert one.tag != "img" or one.attributes["alt"]
        assert one.tag != "th" or one.attributes["scope"] in ("col", "row")


def test_half_a_character_is_written_as_a_file_can_hold_it() -> None:
    text = FORMATS["html"](Report([], ["caf\udce9"], title="\ud800"))
    assert "caf\\udce9" in text
    assert text.encode()


def test_a_result_takes_little_room() -> None:
    """50 kB each is what 300 of them in 15 MB may take; `benchmark_report.py` makes these."""
    from benchmarks.report_page import drawn

    text = FORMATS["html"](page.page([StoredResult(Path(str(i)), drawn(i)) for i in range(5)], 0.5))
    assert len(text.encode()) < 5 * 50_000


# The command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report"]) == 1
    assert "run `purity score` first" in capsys.readouterr().err
    for i, one in enumerate(results()):
        store.write(one, here / "results" / f"net-{i}")
    (here / "results" / "net-1" / "cam.png").write_bytes(b"\x89PNG...")
    (here / "results" / "net-1" / "cam.svg").write_text("<svg onload='alert(1)'/>")
    (here / "results" / "gone").mkdir()
    (here / "results" / "gone" / FAILED).write_text(
        json.dumps({"job": {"model": "broken", "dataset": "d"}, "error": "E."})
    )
    assert cli.run(["report"]) == 0
    out, err = capsys.readouterr()
    assert out == "report.html\n"
    assert "cam.svg is left out" in err
    tree = parsed((here / "report.html").read_text("utf-8"))
    assert len(table(tree, "results")[1]) == 4
    (image,) = tree.all("img")
    assert image.attributes == {"src": "data:image/png;base64,iVBORy4uLg==", "alt": "Grad-CAM: cam.png"}
    assert "broken on d failed: E." in tree.text

    assert cli.run(["report", "results/net-[01]", "-o", "deep/two.html", "-t", "0.3"]) == 0
    two = parsed((here / "deep" / "two.html").read_text("utf-8"))
    assert len(table(two, "results")[1]) == 2
    assert "F at the threshold 0.3" in two.text
    capsys.readouterr()
    assert cli.run(["report", "results", "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### Feature purity of 4 networks\n\n4 results on 400 images of net set;")
    assert "| net0 " in text
    assert "- broken on d failed: E." in text
    assert "- Nothing fires at any threshold, so that F is NaN: net1: C2." in text
    assert cli.run(["report", "results/nothing*"]) == 1
    assert "results/nothing* is not there" in capsys.readouterr().err


def test_of_the_same_scored_twice_the_newer_one_is_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = results(1)[0]
    for day, top1 in (("2026-02-02", 60.0), ("2026-02-01", 50.0)):
        store.write(replace(one, top1=top1, provenance={**one.provenance, "started": day}), here / "nights" / day)
    assert cli.run(["report", "nights", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert [row["top1"] for row in read(out)] == ["60.0"]
    assert "Older results of the same: nights/2026-02-01: left out." in err
