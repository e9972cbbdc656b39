"""From the files of a run to its report."""

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from core.events import Vote
from loadtests import report, seen
from loadtests.judge import Judged, judge
from loadtests.ledger import Ledger
from loadtests.machine import OTHERS, Sampler, Samples, Usage, _tree
from loadtests.observe import ColdPoll, HotPoll
from loadtests.reader import Reader
from loadtests.run import Finished, Options, Places
from loadtests.trace import Recorder
from loadtests.wire import parse_object

POLL, START = "r-first", 1000.0
VOTES = [Vote(f"v{n}", POLL, "a", f"voter{n}") for n in range(4)]
EVENT = {"match_id": "m", "event_id": "e1"}


def finished(directory: Path) -> Finished:
    """A run of four votes and an event, one subscriber that got everything 50 ms after it was due."""
    books, recorder, reader = Ledger(), Recorder(), Reader("sse-0", (f"poll.{POLL}", "match.m.*"))
    recorder.event(START + 1.0, "e1")
    books.add_events([EVENT], 1, 0)
    digests = []
    for number, vote in enumerate(VOTES):
        due = START + number / 2
        recorder.votes(due, [vote])
        recorder.request(due, due + 0.001, due + 0.01, 202, 1)
        books.add_votes([vote], 1, 0)
        digests.append(books.polls[POLL].digest)
    recorder.save(directory, START, 2.0, senders=10, open_max=1)
    lines = [
        f'{{"event":"tally","id":"1~f~0.1.{n}.0.1","data":{{"poll_id":"{POLL}","applied":{n},"digest":"{digest}"}}}}'
        for n, digest in enumerate(digests, 1)
    ]
    for number, line in enumerate(lines):
        reader.take(parse_object(line.encode()), START + number / 2 + 0.05)
    reader.take(parse_object(b'{"event":"kill","id":"1~f~0.1.9.0.1","data":{"event_id":"e1"}}'), START + 1.05)
    seen.save(directory, [reader], ["sse-0: <closed>"], [0.5, 0.7])
    hashes = np.load(directory / "trace.npz")[f"vote/{POLL}/hash"].view(np.uint64)
    places = Places(
        {POLL: HotPoll(4, digests[-1], {"a": 4}, {}, 4)},
        {POLL: ColdPoll(4, 4, digests[-1], {"a": 4}, {"a": 4})},
        {POLL: hashes},
        {"m": ["e1"]},
        unaccounted=0.0,
    )
    samples = Samples([START, START + 1], {"sender": Usage([9.0, 11.0], 50.0), OTHERS: Usage([0.0, 1.0])})
    options = Options("sustained", 2.0, 2.0, 1, 0)
    return Finished(options, books, [], places, samples, ["sender"], directory, [directory])


@pytest.fixture
def run(tmp_path: Path) -> Judged:
    return judge(finished(tmp_path))


def test_a_run_that_went_well_is_proven_and_measured(run: Judged) -> None:
    found = run.outcome
    assert [str(check) for check in found.checks if not check.is_met] == []
    assert found.votes.count == 4
    assert found.votes.p99 == pytest.approx(50, rel=0.011)
    assert found.events.p50 == pytest.approx(50, rel=0.011)
    assert found.answers.p50 == pytest.approx(10)
    assert found.lateness.p50 == pytest.approx(1)
    assert found.is_fast
    assert found.cpu_percent["sender"] == 10


def test_a_vote_that_nobody_was_shown_fails_the_proof(tmp_path: Path) -> None:
    result = finished(tmp_path)
    result.places.orders[POLL] = np.concatenate([np.asarray([1], dtype=np.uint64), result.places.orders[POLL]])
    outcome = judge(result).outcome
    assert "votes that no tally covers: expected 0, found 1" in " ".join(map(str, outcome.checks))
    assert not outcome.is_proven


def test_the_report_holds_its_plots_and_escapes_what_it_shows(run: Judged, tmp_path: Path) -> None:
    page = report.write([run], tmp_path / "report").read_text()
    assert page.count('src="data:image/png;base64,') == 4
    assert "sse-0: &lt;closed&gt;" in page
    assert "DIFFERS" not in page
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary[0]["votes"]["count"] == 4


def test_the_table_says_what_failed(run: Judged) -> None:
    run.outcome.checks[0] = type(run.outcome.checks[0])("sender", "a [comparison]", "1", "2")
    console = Console(record=True, width=110)
    report.show([run.outcome], console)
    text = console.export_text()
    assert "FAILED" in text
    assert "a [comparison]: expected 1, found 2" in text
    assert "p99.9" in text


def has_worked(sampler: Sampler) -> bool:
    usage = sampler.samples.roles.get("me")
    return usage is not None and bool(usage.percent) and usage.mean > 0


def test_the_sampler_sees_a_process_at_work() -> None:
    sampler = Sampler({"me": os.getpid()}, None)
    sampler.start()
    deadline = time.monotonic() + 10
    while not has_worked(sampler) and time.monotonic() < deadline:
        sum(range(10_000))
    found = sampler.finish()
    assert found.roles["me"].mean > 0
    assert found.roles["me"].memory_mb > 1
    assert OTHERS in found.roles


def test_processes_that_end_all_over_the_machine_hide_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil reads them all to find the children of one, and may fail for the sake of a stranger."""
    children, calls = psutil.Process.children, []

    def interrupted(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
        calls.append(process)
        if len(calls) % 2:
            raise psutil.AccessDenied(1)
        return children(process, recursive)

    def denied(process: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
        raise psutil.AccessDenied(1)

    monkeypatch.setattr(psutil.Process, "children", interrupted)
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            for _ in range(20):
                assert child.pid in [process.pid for process in _tree(os.getpid())]
            monkeypatch.setattr(psutil.Process, "children", denied)
            assert [process.pid for process in _tree(os.getpid())] == [os.getpid()]
        finally:
            child.kill()
