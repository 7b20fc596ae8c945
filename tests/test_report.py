"""`difftool report`: what its page holds, how it is built, and what it does with folders of strangers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pages
import pytest
import torch
from conftest import POINTS, Run
from pages import HOSTILE, Page, copied, picture, renamed_classes, with_evaluation, with_previews
from PIL import Image

from difftool.errors import BadFile
from difftool.report import page as pages_of_report
from difftool.report.content import Chart, Line, number
from difftool.report.differences import settings_table
from difftool.report.evaluations import newest_evaluations
from difftool.report.gather import gather
from difftool.report.page import command_of, write_page
from difftool.report.pictures import Encoded, fit, from_pixels, read_picture
from difftool.report.svg import Axis, charts_of
from difftool.runs.folder import open_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_bokeh(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Write pages as without the extra, unless a test is about it."""
    if request.node.get_closest_marker("extras") is None:
        monkeypatch.setitem(sys.modules, "bokeh", None)


def page_of(*runs: Path) -> Page:
    """The page of some runs, without samples drawn for it."""
    gathered = [gather(open_run(run), CPU, with_samples=False) for run in runs]
    return Page(write_page(gathered, "difftool report").html)


@pytest.fixture(scope="module")
def full_run(labels_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that a page shows."""
    run = copied(labels_run, tmp_path_factory.mktemp("full") / "full")
    return with_evaluation(with_previews(renamed_classes(run, ["cat", "dog", HOSTILE, "emu"])))


@pytest.fixture(scope="module")
def full(full_run: Path) -> Page:
    """The page of that run, with samples drawn for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "bokeh", None)
        return Page(write_page([gather(open_run(full_run), CPU)], "difftool report").html)


# --- what a page holds ------------------------------------------------------------------------------------------------


def test_a_page_has_all_parts_of_a_run(full: Page) -> None:
    assert full.titles[0] == "Run full"
    wanted = {"Loss", "Loss by level of noise", "Samples", "From noise to samples", "Samples during training"}
    wanted |= {"Predictions during training", "Metrics", "Classes", "Noise schedule", "How to repeat it"}
    assert wanted <= {*full.titles}
    sliders = [one for one in full.all("input") if one["type"] == "range"]
    assert len(sliders) == 3
    assert [one["max"] for one in sliders[1:]] == ["2", "2"]
    assert [one.whole_text for one in full.all("bdi") if one.text in ("cat", "dog", HOSTILE, "emu")] == [
        *("cat", "dog", HOSTILE, "emu")
    ]
    codes = [one.text for one in full.all("code")]
    assert any(re.fullmatch(r"difftool train --config \S+/full/config.toml --out NEW-FOLDER", code) for code in codes)
    assert any(re.fullmatch(r"difftool sample \S+/full", code) for code in codes)


def test_numbers_of_an_evaluation_stand_with_error_and_floor(full: Page) -> None:
    (table,) = (one for one in full.all("table") if one["class"] == "scores")
    kid, recall = ([cell.whole_text for cell in row.within][:6] for row in table.within[-1].within)
    beside = "above the floor by 0.0117 ± 0.0010"
    assert kid == ["kid", "0.0120 ± 0.0010", "0.00030 ± 0.00020", beside, "lower", "2,000"]
    assert recall == ["recall (of 1)", "0.5", "–", "–", "higher", "2,000"]
    assert "12.0% of samples are nearer to a training item than 95% of held-out items are." in full.text
    assert "2,000 samples; against 360 held-out items; features: pixels; sampler ddim, steps 50" in full.text


def test_the_film_goes_from_noise_to_the_samples(full: Page) -> None:
    frames = [one["data-label"] for one in full.all("div") if one["class"].split()[:1] == ["frame"]]
    film = frames[: frames.index("x_0, the samples") + 1]
    assert film[0] == "t = 999"
    levels = [int(label.removeprefix("t = ")) for label in film[:-1]]
    assert levels == sorted(levels, reverse=True)
    assert 10 < len(film) <= 24


def test_several_runs_lie_over_each_other(labels_run: Path, points_run: Path) -> None:
    page = page_of(labels_run, points_run)
    assert page.titles[:2] == ["2 runs", "All runs"]
    assert {"Training loss of all runs", "labels", "points"} <= {*page.titles}
    results, differs = (
        next(one for one in page.all("table") if one.within[0].text == caption)
        for caption in ("Results", "What differs")
    )
    assert [cell.whole_text for cell in results.within[1].within[0].within] == ["", "labels", "points"]
    rows = {row.within[0].text: [cell.text for cell in row.within[1:]] for row in differs.within[2].within}
    assert rows["dataset"] == ["gaussian-mixture", "swiss-roll"]
    assert rows["lr"] == ["0.005", "0.006"]
    assert rows["backbone.width"] == ["32", "16"]
    assert "dataset.components" not in rows  # only one of the runs has such data
    links = {one["href"] for one in page.all("a")}
    assert {"#all", "#run-1", "#run-2"} <= links


def test_runs_of_one_name_are_told_apart(points_run: Path, tmp_path: Path) -> None:
    first, second = (copied(points_run, tmp_path / name / "run") for name in "ab")
    assert {"run", "run (2)"} <= {*page_of(first, second).titles}


def test_the_same_settings_make_no_table() -> None:
    config = {"training": {"lr": 1.0}, "schedule": {"name": "linear"}, "run": {"started": "now"}}
    assert settings_table({"a": config, "b": {**config, "run": {"started": "later"}}}) is None


# --- how a page is built ----------------------------------------------------------------------------------------------


def check_structure(page: Page) -> None:
    """Check what readers with a keyboard or a screen reader need."""
    (html,) = page.all("html")
    assert html["lang"] == "en"
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("footer")) == len(page.all("h1")) == 1
    ids = Counter(one["id"] for one in page.elements if one["id"])
    assert not [name for name, count in ids.items() if count > 1]
    for one in page.elements:
        assert {*one["aria-labelledby"].split()} <= {*ids}
        assert not [name for name in one.attributes if name.startswith("on") or name == "style"]
        if one["href"]:
            assert one["href"].startswith("#")
            assert one["href"][1:] in ids
    levels = [int(one.tag[1]) for one in page.elements if re.fullmatch(r"h\d", one.tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    labels = {one["for"] for one in page.all("label")}
    assert {one["id"] for one in page.all("input")} == labels
    assert {one["for"] for one in page.all("output")} == labels
    for image in page.all("img"):
        assert image["alt"]
        assert image["src"].startswith("data:image/webp;base64,")
    for table in page.all("table"):
        assert table.within[0].tag == "caption"
        assert table.within[0].whole_text
    assert all(one["scope"] in ("col", "row") for one in page.all("th"))
    assert all(one["aria-label"] for one in page.all("svg") if one["role"] == "img")
    assert all(one["aria-hidden"] or one["role"] == "img" for one in page.all("svg"))


def check_policy(page: Page) -> None:
    """Check that the policy allows the page's own scripts and nothing from outside."""
    policy = page.policy
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["img-src"] == "data:"
    assert {*policy} == {"default-src", "img-src", "style-src", "script-src", "base-uri", "form-action"}

    def named(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert [named(one.text) for one in page.scripts] == policy["script-src"].split()
    (style,) = page.all("style")
    nonce = f"'nonce-{style['nonce']}'" if style["nonce"] else named(style.text)
    assert policy["style-src"] == nonce
    assert not page.all("link", "iframe", "object", "embed", "base", "form")


def test_a_page_is_built_for_keyboard_and_screen_reader(full: Page) -> None:
    check_structure(full)


def test_the_page_of_several_runs_is_built_so_too(full_run: Path, points_run: Path) -> None:
    page = page_of(full_run, points_run)
    check_structure(page)
    check_policy(page)


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else(full: Page) -> None:
    check_policy(full)


@pytest.mark.extras
def test_charts_zoom_where_bokeh_is_installed(full_run: Path) -> None:
    bokeh = pytest.importorskip("bokeh")
    written = write_page([gather(open_run(full_run), CPU, with_samples=False)], "difftool report")
    page = Page(written.html)
    assert written.zoom
    assert len(written.html.encode()) < pages_of_report.LARGEST
    check_structure(page)
    check_policy(page)
    (data,) = (one for one in page.all("script") if one["type"] == "application/json")
    items = json.loads(data.text)
    assert {*items} == {one["id"] for one in page.all("figure") if one["class"] == "chart"}
    assert all(f"{key}-interactive" in page.text for key in items)
    assert f'"{bokeh.__version__}"' in data.text
    assert len([one for one in page.all("svg") if one["class"] == "plot wide"]) == len(items)  # for print


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.0, 1.0, False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-10.0, 9.0, False, [-10.0, -5.0, 0.0, 5.0]),
        (0.02, 1.0, True, [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]),
        (1e-6, 1.0, True, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        (1.0, 1.5, True, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, log: bool, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 100, log=log).ticks(7) == pytest.approx(ticks)


def test_axes_place_values_between_their_ends() -> None:
    assert [Axis(0, 4, 10, 30).place(v) for v in (0, 1, 4)] == [10, 15, 30]
    assert [Axis(0.01, 1, 200, 0, log=True).place(v) for v in (0.01, 0.1, 1)] == pytest.approx([200, 100, 0])


@pytest.mark.parametrize("y", [[2.0], [2.0, 2.0], [1e-300, 1e300], [1e-12, 1.0]])
@pytest.mark.parametrize("log", [True, False])
def test_any_values_make_a_chart(y: list[float], log: bool) -> None:
    line = Line(name="a & b", x=list(range(len(y))), y=y)
    chart = Chart(key="k", title="T", x_label="x", y_label="<y>", lines=[line], log=log)
    drawn = charts_of(chart)
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert "&lt;y&gt;" in drawn
    assert len(chart.table.rows) == len(y)


def test_a_table_of_values_is_short_and_says_so() -> None:
    line = Line(name="loss", x=list(range(300)), y=[1.0] * 300)
    other = Line(name="held out", x=[100.0, 299.0], y=[2.0, 3.0], errors=[0.1, 0.2])
    table = Chart(key="k", title="Loss", x_label="step", y_label="loss", lines=[line, other]).table
    assert table.caption == "Loss, at 12 of 300 places"
    assert table.rows[0] == ["0", "1", "–"]
    assert table.rows[-1] == ["299", "1", "3 ± 0.2"]


@pytest.mark.parametrize(("value", "text"), [(0.0123456, "0.01235"), (12000, "12,000"), (1e20, "1e+20"), (-3.0, "-3")])
def test_numbers_are_written_as_people_write_them(value: float, text: str) -> None:
    assert number(value) == text


def test_metrics_of_training_and_its_verdict_are_on_the_page(points_run: Path, tmp_path: Path) -> None:
    run = copied(points_run, tmp_path / "measured")
    quarters = {"loss_quartiles": [1.0] * 4, "held_out_quartiles": [2.0, 1.0, 1.0, 1.0]}
    rows = [{"step": i, "loss": 1.0, "held_out_loss": 1.0, **quarters} for i in range(1, 21)]
    rows[9] |= {"kid": 0.5, "kid_error": 0.1}
    rows[19] |= {"kid": 0.25, "kid_error": 0.05, "alone_error": 1.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(run)
    check_structure(page)
    assert "kid during training" in page.titles
    assert "alone during training" not in page.titles
    bodies = {one.within[0].text: one.within[2] for one in page.all("table")}
    rows_of = {name: [[cell.text for cell in row.within] for row in body.within] for name, body in bodies.items()}
    assert rows_of["kid during training"] == [["10", "0.5 ± 0.1"], ["20", "0.25 ± 0.05"]]
    judged = rows_of["The held-out loss by level of noise, which the verdict rests on"]
    assert [row[:4] for row in judged[:2]] == [["lowest noise", "flat", "2", "1"], ["lower noise", "flat", "1", "1"]]
    assert gather(open_run(run), CPU, with_samples=False).verdict.words in page.text
    loss_lines = [one.whole_text for one in page.all("li")]
    assert "held out, cleanest quarter of t" in loss_lines


def test_many_rows_become_few_points(points_run: Path, tmp_path: Path) -> None:
    run = copied(points_run, tmp_path / "long")
    rows = ({"step": i, "loss": 1.0 + math.sin(i / 500), "held_out_loss": 1.0} for i in range(1, 8001))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gathered = gather(open_run(run), CPU, with_samples=False)
    charts = pages_of_report.loss_charts(gathered.rows, "k")
    assert [len(line.x) for line in charts[0].lines] == [300, 300]
    assert len(write_page([gathered], "").html) < 200_000


# --- pictures ---------------------------------------------------------------------------------------------------------


def noise(count: int, size: int = 160) -> list[Encoded]:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8).numpy()
    return [from_pixels(one, label=str(i), alt="noise") for i, one in enumerate(pixels)]


def test_pictures_share_the_room_of_a_page() -> None:
    few, many = noise(2), noise(12)
    size = few[0].size
    assert [len(one.pictures) for one in fit([few, many], 100 * size)] == [2, 12]
    small, large = fit([few, many], 8 * size)
    assert (len(small.pictures), small.left_out) == (2, 0)
    assert 4 <= len(large.pictures) <= 6
    assert large.left_out == 12 - len(large.pictures)
    assert (large.pictures[0].label, large.pictures[-1].label) == ("0", "11")
    assert sum(one.size for group in (small, large) for one in group.pictures) <= 8 * size
    assert [len(one.pictures) for one in fit([few, many], 10)] == [0, 0]


def test_large_pictures_are_made_smaller_before_any_is_left_out() -> None:
    (fitted,) = fit([noise(2, 560)], noise(1, 560)[0].size * 8 // 5)
    assert fitted.left_out == 0
    assert {one.width for one in fitted.pictures} == {480}


def test_a_page_of_many_large_pictures_stays_small(
    images_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_previews(copied(images_run, tmp_path / "large"), range(1, 7), (200, 200))
    monkeypatch.setattr(pages_of_report, "LARGEST", 300_000)
    written = write_page([gather(open_run(run), CPU, with_samples=False)], "difftool report")
    assert len(written.html.encode()) < 300_000
    assert written.left_out > 0
    assert written.pictures + written.left_out == 12
    assert "pictures were left out to keep the page small" in written.html


def test_pixels_survive_on_the_page(tmp_path: Path) -> None:
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8)
    pixels[2:4, 3:5, 0] = 255
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    one = read_picture(tmp_path / "a.png", tmp_path, label="a", alt="a").picture()
    data = base64.b64decode(one.source.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        assert image.convert("RGB").getpixel((3, 2)) == (255, 0, 0)
    assert (one.width, one.height) == (8, 8)


def test_pictures_of_strangers_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    outside = picture(tmp_path / "private.png")
    (run / "previews").mkdir(parents=True)
    (run / "previews" / "link.png").symlink_to(outside)
    (run / "previews" / "text.png").write_text("no picture")
    (run / "previews" / "half.png").write_bytes(outside.read_bytes()[:300])
    Image.new("1", (9000, 9000)).save(run / "previews" / "huge.png")
    Image.new("RGB", (4, 4)).save(run / "previews" / "gif.png", format="GIF")
    reasons = {
        "link.png": "leads out of the run folder",
        "text.png": "cannot be read (no PNG file)",
        "half.png": "cannot be read",
        "huge.png": "too large for a page",
        "gif.png": "cannot be read (no PNG file)",
        "absent.png": "does not exist",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadFile, match=re.escape(reason)):
            read_picture(run / "previews" / name, run, label="", alt="")


# --- folders of strangers ---------------------------------------------------------------------------------------------


def test_texts_of_strangers_stay_texts(points_run: Path, tmp_path: Path) -> None:
    run = copied(points_run, tmp_path / "<img src=x onerror=alert(1)>")
    config = (run / "config.toml").read_text().replace('device = "cpu"', f"device = '{HOSTILE}'")
    (run / "config.toml").write_text(config)
    score = {"metric": HOSTILE, "name": HOSTILE, "value": 1.0, "n": 3, "unit": HOSTILE, "better": "lower"}
    pair = {"sample": HOSTILE, "id": HOSTILE, "distance": HOSTILE}
    with_evaluation(
        run,
        weights=HOSTILE,
        against=HOSTILE,
        features={"name": HOSTILE},
        sampling={HOSTILE: HOSTILE},
        scores=[score],
        copies={"words": HOSTILE, "nearest": [pair]},
        pictures=[f"evaluations/{HOSTILE}.png", "metrics.jsonl", "evaluations/x/y.png"],
    )
    other = copied(run, tmp_path / "two")
    for page in (page_of(run), page_of(run, other)):
        assert len(page.scripts) == 1
        assert not page.all("img")
        assert page.text.count("alert(1)") > 8
        check_structure(page)
        check_policy(page)


def test_a_script_element_in_the_data_of_charts_ends_nothing(
    points_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {"run-1-loss": {"title": "</script><script>alert(1)</script><!--"}}
    chart = pages_of_report.Interactive('"</script>"; x = "<!--"\r\n', items)
    monkeypatch.setattr(pages_of_report, "interactive", lambda charts: chart)
    page = page_of(points_run)
    (data,) = (one for one in page.all("script") if one["type"])
    assert json.loads(data.text) == items
    assert len(page.scripts) == 3
    assert "\r" not in page.text
    check_policy(page)


def test_an_empty_run_makes_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "config.toml").write_text("nonsense [")
    page = page_of(run)
    for words in ("config.toml cannot be read", "metrics.jsonl holds no rows", "the run has no model yet"):
        assert words in page.text
    check_structure(page)
    assert "Loss" not in page.titles


def test_a_broken_model_is_said_and_the_rest_shown(points_run: Path, tmp_path: Path) -> None:
    run = copied(points_run, tmp_path / "broken")
    (run / "model.safetensors").write_bytes(b"x" * 100)
    page = page_of(run)
    assert "the model cannot be opened: " in page.text
    assert "Loss" in page.titles


def test_lines_that_are_no_evaluations_are_skipped(points_run: Path, tmp_path: Path) -> None:
    run = copied(points_run, tmp_path / "run")
    lines = ["{", "[]", "{}", '{"scores": 3}', '{"scores": [1]}', '{"step": 1, "scores": [], "pictures": ["../x.png"]}']
    (run / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    with_evaluation(run, copies={"nearest": [3, {}], "share": "x"}, sampling={}, features={}, scores=[], pictures=[])
    (found,) = (one.evaluation for one in newest_evaluations(open_run(run)))
    assert found.title == "step 4, ema-0.999"
    assert found.copies == ""
    assert not found.scores


def test_only_the_newest_evaluations_are_shown(points_run: Path, tmp_path: Path) -> None:
    run = copied(points_run, tmp_path / "run")
    for step in range(25):
        with_evaluation(run, step=step, pictures=[])
    steps = [one.evaluation.title for one in newest_evaluations(open_run(run))]
    assert len(steps) == 20
    assert (steps[0], steps[-1]) == ("step 24, ema-0.999", "step 5, ema-0.999")


def test_paths_of_the_machine_are_not_on_the_page(points_run: Path, tmp_path: Path) -> None:
    run = copied(points_run, tmp_path / "run")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[dataset]", '[dataset]\npath = "/home/ada/secret/photos"'))
    page = page_of(run)
    assert ".../photos" in page.text
    assert "/home/ada" not in page.text


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_names_it(run: Run, points_run: Path, tmp_path: Path) -> None:
    own = with_previews(copied(points_run, tmp_path / "runs" / "own"))
    outcome = run("report", own)
    assert outcome.code == 0, outcome.err
    assert outcome.lines == [str(own / "report.html")]
    assert re.search(r"1 run, \d+ pictures, 0\.\d MB, ", outcome.err)
    assert "the charts do not zoom, since Bokeh is not installed: pip install 'difftool[report]'" in outcome.err
    page = Page((own / "report.html").read_text())
    assert "From noise to samples" in page.titles
    assert run("report", "--no-samples").error.endswith("exists already; give another name, or --overwrite")
    assert run("report", "--no-samples", "--overwrite").lines == [str(Path("runs", "own", "report.html"))]


def test_json_tells_what_the_page_holds(run: Run, points_run: Path, labels_run: Path, tmp_path: Path) -> None:
    broken = copied(points_run, tmp_path / "broken")
    picture(broken / "previews" / "samples-000001.png")
    (broken / "previews" / "samples-000002.png").write_text("x")
    facts: dict[str, Any] = json.loads(run("report", broken, labels_run, "--no-samples", "--json").out)
    assert facts["files"] == ["report.html"]
    assert facts["bytes"] == Path("report.html").stat().st_size
    assert (facts["pictures"], facts["left_out"], facts["zoom"]) == (1, 0, False)
    assert facts["runs"][0]["notes"] == ["samples-000002.png cannot be read (no PNG file); it was left out"]
    assert [one["step"] for one in facts["runs"]] == [0, 400]


def test_files_of_other_commands_stand_on_the_page(run: Run, points_run: Path) -> None:
    picture(Path("compare.png"))
    rows = [f"{HOSTILE},0.123456789,{i}" for i in range(250)]
    Path("compare.csv").write_text("\n".join(["sampler,error,calls", *rows]) + "\nshort\n")
    added = ("--add", "compare.png", "--add", "compare.csv")
    assert run("report", points_run, "--no-samples", "--out", "x.html", *added).code == 0
    page = Page(Path("x.html").read_text())
    check_structure(page)
    check_policy(page)
    assert page.titles[-1] == "More results"
    assert [one["alt"] for one in page.all("img")] == ["The picture compare.png"]
    table = page.all("table")[-1]
    assert table.within[0].text == "compare.csv, the first 200 of 251 rows"
    assert [cell.whole_text for cell in table.within[2].within[0].within] == [HOSTILE, "0.123457", "0"]
    assert "--add compare.png --add compare.csv --out x.html --no-samples" in page.all("code")[-1].text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["RUN", "--out", "page.pdf"], 2, "--out: page.pdf: cannot write .pdf files; known are .html .htm"),
        (["RUN", "RUN"], 2, "is given twice"),
        (["absent"], 1, "run absent does not exist"),
        (["."], 1, ". is not a run folder: it has no config.toml"),
        (["RUN", "--out", "taken.html"], 1, "taken.html exists already"),
        (["RUN", "--device", "tpu"], 2, "--device: unknown device 'tpu'"),
        (["RUN", "--add", "a.pdf"], 2, "--add: a.pdf: cannot write .pdf files; known are .png .csv"),
        (["RUN", "--add", "absent.csv"], 1, "--add: absent.csv cannot be read: No such file or directory"),
        (["RUN", "--add", "absent.png"], 1, "--add: absent.png does not exist"),
        (["RUN", "--add", "taken.csv"], 1, "--add: taken.csv holds no table"),
        (["RUN", "--add", "binary.csv"], 1, "--add: binary.csv cannot be read: it is no table of UTF-8 text"),
        ([f"r{i}" for i in range(17)], 2, "17 runs are too many for a page; name at most 16"),
        ([], 1, "there is no trained run under"),
    ],
)
def test_wrong_requests_get_one_line(run: Run, points_run: Path, arguments: list[str], code: int, words: str) -> None:
    Path("taken.html").touch()
    Path("taken.csv").touch()
    Path("binary.csv").write_bytes(bytes(range(256)))
    outcome = run("report", *(points_run if word == "RUN" else word for word in arguments))
    assert outcome.code == code
    assert words in outcome.error
    assert Path("taken.html").read_text() == ""


def test_training_ends_with_the_name_of_the_command(run: Run) -> None:
    outcome = run("train", *POINTS, "--steps", 1, "--out", "x")
    assert outcome.err.splitlines()[-1] == "make a page of it with: difftool report x"
    assert run("report", "x", "--no-samples").code == 0
    assert run("train", *POINTS, "--steps", 1, "--out", "x", "--overwrite").code == 0
    assert not Path("x", "report.html").exists()


def test_the_page_names_the_command_that_writes_it() -> None:
    paths = [Path("runs/a b"), Path("c")]
    assert command_of(paths, [("--out", "x.html"), ("--no-samples", "")]) == (
        "difftool report 'runs/a b' c --out x.html --no-samples"
    )


def test_helpers_read_pages() -> None:
    page = pages.Page("<h1>a<b>c</b></h1>")
    assert page.titles == ["a c"]
