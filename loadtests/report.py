"""The report of a load test: one HTML file with its plots inside, `summary.json` beside it, and a table to print."""

import os
import platform
import time
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from loadtests.judge import Judged
from loadtests.latency import Summary
from loadtests.outcome import Outcome
from loadtests.plots import draw

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-top:1px solid #d8dee4;padding-top:1rem}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .8rem;border-bottom:1px solid #d8dee4;text-align:left}td.n{text-align:right}
.ok{color:#0a6b2d}.no{color:#b3121d;font-weight:600}img{max-width:100%}code{font-size:.9em}
"""
Row = Sequence[str]


def write(runs: Sequence[Judged], directory: Path) -> Path:
    """Write `report.html` and `summary.json`; the path of the former."""
    directory.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    parts = [
        f"<h1>Arenacast load test</h1><p>{escape(when)} · {escape(machine)} · everything on one machine.",
        " Latency = from the moment at which a vote or event was <em>due</em> to its receipt by a subscriber;",
        " a vote is received with the first tally that covers it.</p>",
        *(_section(run) for run in runs),
    ]  # fmt: skip
    head = f'<html lang="en"><meta charset="utf-8"><title>Arenacast load test</title><style>{_STYLE}</style>'
    path = directory / "report.html"
    path.write_text(f"<!doctype html>{head}{''.join(parts)}</html>\n")
    (directory / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode([run.outcome for run in runs])))
    return path


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print percentiles and verdicts, then whatever is wrong or doubtful."""
    latencies = Table("run", "latency, ms", title="Load test", title_justify="left", box=SIMPLE)
    verdicts = Table("run", "objective", "limit", "measured", "verdict", box=SIMPLE)
    for column in ("p50", "p95", "p99", "p99.9"):
        latencies.add_column(column, justify="right")
    for one in outcomes:
        for what, summary in _latencies(one):
            latencies.add_row(one.name, what, *_milliseconds(summary))
        for o in one.objectives:
            verdict = _verdict(o.is_met, "met", "NOT MET")
            verdicts.add_row(one.name, o.name, f"< {o.limit:g} {o.unit}", f"{o.measured:.4g} {o.unit}", verdict)
        agreed = f"{sum(check.is_met for check in one.checks)} agree"
        verdict = _verdict(one.is_proven, "PROVEN", "FAILED")
        verdicts.add_row(one.name, "every place counts the same", f"{len(one.checks)} comparisons", agreed, verdict)
    console.print(latencies, verdicts)
    for one in outcomes:
        cpu = ", ".join(f"{role} {percent:.0f}" for role, percent in _by_use(one))
        console.print(f"{one.name}: CPU in % of a core under load: {cpu}", highlight=False)
        for check in one.checks:
            if not check.is_met:
                console.print(f"{one.name}: {check}", style="red", markup=False, highlight=False)
        for doubt in one.doubts:
            console.print(f"{one.name}: {doubt}", style="yellow", markup=False, highlight=False)


def _by_use(one: Outcome) -> list[tuple[str, float]]:
    return sorted(one.cpu_percent.items(), key=lambda item: -item[1])


def _latencies(one: Outcome) -> list[tuple[str, Summary]]:
    return [
        (f"votes to {one.subscribers} subscribers", one.votes),
        ("match events to the same", one.events),
        ("202 answered, from when the body was due", one.answers),
    ]


def _milliseconds(summary: Summary) -> list[str]:
    return [f"{value:.1f}" for value in (summary.p50, summary.p95, summary.p99, summary.p999)]


def _verdict(is_met: bool, yes: str, no: str) -> str:
    return f"[green]{yes}[/green]" if is_met else f"[red]{no}[/red]"


def _section(run: Judged) -> str:
    one, options = run.outcome, run.options
    plots = "".join(
        f'<p><img alt="{name}" src="data:image/png;base64,{b64encode(png).decode()}"></p>'
        for name, png in draw(run).items()
    )
    follow = "one poll" if options.follow == "one" else "all polls"
    intro = (
        f"{one.acknowledged:,} votes and events in {one.requests:,} requests over {one.seconds:g} s, up to "
        f"{one.peak:,.0f}/s; {one.repeated:,} of them deliberate repeats. {options.sse} SSE and {options.ws} WebSocket "
        f"subscribers, each with {follow} and the match. Hot state complete {one.hot_drained_s:.1f} s after the last "
        f"answer, ClickHouse {one.cold_drained_s:.1f} s after it."
    )
    return "".join([
        f"<h2>{escape(one.name)}</h2><p>{escape(intro)}</p>",
        _table(("objective", "limit", "measured", ""), [
            (o.name, f"{o.limit:g} {o.unit}", f"{o.measured:.4g} {o.unit}", _mark(o.is_met, "met", "not met"))
            for o in one.objectives
        ]),
        _table(("latency, ms", "deliveries", "p50", "p95", "p99", "p99.9", "highest"), [
            (what, f"{s.count:,}", *_milliseconds(s), f"{s.highest:.1f}") for what, s in _all_latencies(one)
        ]),
        "<p>The gateway's own <code>e2e_latency_ms</code>, received by ingest until written to the socket, in ms: ",
        f"{escape(_pairs(one.gateway_ms, '.1f'))}.</p>",
        "<h3>Can the generator be believed?</h3>",
        "".join(f'<p class="no">{escape(doubt)}</p>' for doubt in one.doubts)
        or '<p class="ok">Yes: it was neither late nor busy, and the machine had time left.</p>',
        plots,
        _table(("process", "CPU, % of a core", "p95", "memory, MB"), [
            (role, f"{percent:.0f}", f"{one.cpu_p95_percent[role]:.0f}", f"{one.memory_mb[role]:.0f}")
            for role, percent in _by_use(one)
        ]),
        "<h3>Proof</h3>",
        _table(("place", "what", "sender", "found", ""), [
            (c.place, c.what, c.expected, c.found, _mark(c.is_met, "same", "DIFFERS")) for c in one.checks
        ]),
        f"<p>Messages received: {escape(_pairs(one.messages, ','))}. Verdicts: {escape(_pairs(one.verdicts, ','))}. ",
        f"Connections lost: {one.lost_connections}. {escape('; '.join(one.reasons[:5]))}</p>",
    ])  # fmt: skip


def _all_latencies(one: Outcome) -> list[tuple[str, Summary]]:
    return [*_latencies(one), ("generator: sent late", one.lateness), ("generator: read late", one.loop_lag)]


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = ["<table><tr>", *(f"<th>{escape(name)}</th>" for name in head), "</tr>"]
    for row in rows:
        lines += ["<tr>", *(_cell(value) for value in row), "</tr>"]
    return "".join([*lines, "</table>"])


def _cell(value: str) -> str:
    if value.startswith("<span"):
        return f"<td>{value}</td>"
    is_number = bool(value) and value.replace(",", "").replace(".", "").isdecimal()
    return f'<td class="n">{value}</td>' if is_number else f"<td>{escape(value)}</td>"


def _mark(is_met: bool, yes: str, no: str) -> str:
    return f'<span class="{"ok" if is_met else "no"}">{yes if is_met else no}</span>'


def _pairs(values: dict[str, float] | dict[str, int], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items()) or "none"
