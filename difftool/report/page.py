"""The page itself: the parts of all runs in one HTML file that opens nothing else."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from difftool.report import gather, svg
from difftool.report.attachments import Attachment
from difftool.report.content import Added, Page, RunPage, ScoreRow, Slider, Table, number
from difftool.report.curves import loss_charts, metric_charts, overlay, schedule_charts
from difftool.report.differences import results_of, results_table, settings_table
from difftool.report.gather import Gathered
from difftool.report.interactive import Interactive, interactive
from difftool.report.pictures import Encoded, Fitted, fit
from difftool.version import __version__

LARGEST = 6_000_000
"""The largest size of a page in bytes."""
ROOM = 60_000
"""The bytes that are kept free for what the page says of its pictures."""
MOST_CLASSES = 200
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Written:
    """A page as text, and facts about it."""

    html: str
    pictures: int
    left_out: int
    zoom: bool
    """True if the charts can be zoomed."""


def write_page(runs: Sequence[Gathered], command: str, attachments: Sequence[Attachment] = ()) -> Written:
    """Return the page of some runs, and of files that other commands have written."""
    bare = replace(page_of(runs, command), added=[Added(name=one.name, table=one.table) for one in attachments])
    charts = interactive(bare.all_charts)
    left = LARGEST - ROOM - len(render(bare, charts).encode())
    more = [[] if one.picture is None else [one.picture] for one in attachments]
    fitted = fit([*(group for run in runs for group in groups(run)), *more], max(0, left))
    rest = iter(fitted)
    pages = [with_pictures(page, run, rest) for page, run in zip(bare.runs, runs, strict=True)]
    added = [
        replace(one, picture=next((picture.picture() for picture in own.pictures), None))
        for one, own in zip(bare.added, rest, strict=True)
    ]
    return Written(
        html=render(replace(bare, runs=pages, added=added), charts),
        pictures=sum(len(group.pictures) for group in fitted),
        left_out=sum(group.left_out for group in fitted),
        zoom=charts is not None,
    )


def groups(run: Gathered) -> list[Sequence[Encoded]]:
    """Return the groups of pictures of a run, between which a page divides its room."""
    return [run.samples, run.panels, run.film, *(pictures for _, pictures in run.evaluations)]


# --- from what was gathered to a page -------------------------------------------------------------------------------


def page_of(runs: Sequence[Gathered], command: str) -> Page:
    """Return the page of some runs, without pictures."""
    names = _unique([run.name for run in runs])
    pages = [run_page(run, f"run-{i}", name) for i, (run, name) in enumerate(zip(runs, names, strict=True), start=1)]
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    page = Page(title=title, runs=pages, version=__version__, command=command)
    if len(runs) == 1:
        return page
    by_name = dict(zip(names, runs, strict=True))
    results = {
        name: results_of(run.losses, gather.progress(run.status), run.verdict.state, own.evaluations)
        for (name, run), own in zip(by_name.items(), pages, strict=True)
    }
    tables: list[Table] = [results_table(results)]
    if (differing := settings_table({name: run.config for name, run in by_name.items()})) is not None:
        tables.append(differing)
    return replace(page, charts=overlay({name: run.rows for name, run in by_name.items()}), tables=tables)


def _unique(names: Sequence[str]) -> list[str]:
    """Return names of which no two are the same."""
    found: list[str] = []
    for name in names:
        count = sum(name == other for other in names[: len(found)])
        found.append(f"{name} ({count + 1})" if count else name)
    return found


def run_page(run: Gathered, key: str, name: str) -> RunPage:
    """Return the part of a page about one run, without pictures."""
    classes, more = gather.classes(run, MOST_CLASSES)
    return RunPage(
        key=key,
        name=name,
        sentence=gather.sentence(run),
        verdict=run.verdict.words if run.rows else "",
        judged=gather.judged_table(run),
        facts=gather.facts(run),
        commands=gather.commands(run),
        charts=loss_charts(run.rows, key),
        metrics=metric_charts(run.rows, key),
        evaluations=[recorded.evaluation for recorded, _ in run.evaluations],
        classes=classes,
        more_classes=more,
        schedule=[] if run.model is None else schedule_charts(run.model.schedule, key),
        config=gather.config_text(run),
        digest="" if run.model is None else run.model.digest,
        notes=gather.notes(run),
    )


def with_pictures(page: RunPage, run: Gathered, fitted: Iterator[Fitted]) -> RunPage:
    """Return the part of a page with the pictures of the run, in the order of `groups`."""
    samples, panels, film, *others = (next(fitted) for _ in groups(run))
    sliders = (_film(film, page.key), _samples(samples, page.key), _panels(panels, page.key))
    evaluations = [
        replace(evaluation, pictures=[one.picture() for one in own.pictures])
        for evaluation, own in zip(page.evaluations, others, strict=True)
    ]
    return replace(page, sliders=[one for one in sliders if one is not None], evaluations=evaluations)


def _slider(fitted: Fitted, key: str, title: str, text: str, label: str) -> Slider | None:
    pictures = [one.picture() for one in fitted.pictures]
    if not pictures:
        return None
    return Slider(key=key, title=title, text=text, label=label, pictures=pictures, left_out=fitted.left_out)


def _film(fitted: Fitted, key: str) -> Slider | None:
    text = "Samples on their way from noise to data, drawn for this page with the newest weights."
    return _slider(fitted, f"{key}-film", "From noise to samples", text, "Noise level")


def _samples(fitted: Fitted, key: str) -> Slider | None:
    text = "Samples that were drawn while the run trained, always from the same noise."
    return _slider(fitted, f"{key}-previews", "Samples during training", text, "Training step")


def _panels(fitted: Fitted, key: str) -> Slider | None:
    text = "Items with noise of several levels, and what the network makes of them in one step."
    return _slider(fitted, f"{key}-panels", "Predictions during training", text, "Training step")


# --- from a page to HTML ----------------------------------------------------------------------------------------------


def render(page: Page, charts: Interactive | None) -> str:
    """Return the HTML of a page. Every text is escaped, and the policy of the page allows its own scripts alone."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(svg=svg.charts_of, swatch=svg.swatch, number=number)
    style, script = _own("style.css"), _own("page.js")
    scripts = [] if charts is None else [_own("nonce.js"), _inline(charts.script)]
    # autoescape is for texts: these are our own files, and the script of an installed package
    return environment.get_template("page.html").render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        interactive=charts is not None,
        interactive_scripts=[Markup(text) for text in scripts],
        interactive_items="" if charts is None else htmlsafe_json_dumps(charts.items),
        policy=policy(style, [*scripts, script], nonce=charts is not None),
        nonce=nonce_of(style),
        bar=_bars(page),
    )


def _own(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8").rstrip()


def _inline(script: str) -> str:
    """Return a script as it can stand in a page: nothing in it ends the element, and lines end as HTML has them."""
    text = script.replace("\r\n", "\n").replace("\r", "\n").strip()
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def sha256(text: str) -> str:
    """Return the digest by which a policy names a script or a style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def nonce_of(text: str) -> str:
    return sha256(text).removeprefix("sha256-")[:24].replace("+", "-").replace("/", "_")


def policy(style: str, scripts: Sequence[str], *, nonce: bool) -> str:
    """Return a content security policy under which the page runs these scripts and loads nothing.

    The charts of Bokeh come with style sheets of their own, which it makes by script; the nonce allows those.
    """
    styles = f"'nonce-{nonce_of(style)}'" if nonce else f"'{sha256(style)}'"
    hashes = " ".join(f"'{sha256(script)}'" for script in scripts)
    rules = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": styles,
        "script-src": hashes,
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _bars(page: Page) -> Callable[[ScoreRow], Markup]:
    """Return the function that draws a score beside its number, on the scale of all scores of its name."""
    ends: dict[str, list[float]] = {}
    for score in (score for run in page.runs for evaluation in run.evaluations for score in evaluation.scores):
        ends.setdefault(score.metric, []).extend(score.ends)
    return lambda score: svg.whisker(score, min(ends[score.metric]), max(ends[score.metric]))


def command_of(paths: Sequence[Path], options: Sequence[tuple[str, str]]) -> str:
    """Return the command line that writes a page of these runs."""
    words = ["difftool", "report", *map(str, paths), *(word for pair in options for word in pair if word)]
    return shlex.join(map(gather.clean, words))
