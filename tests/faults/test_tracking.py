"""A tracking server that fails: the run does not notice, and afterwards every point is there, once."""

from __future__ import annotations

import http.client
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from polydream.core.log import read_metrics, resend
from polydream.core.tracking import clean
from polydream.core.train import Trainer

from .harness import FULL, child, ended, loadable, record, tiny

BEGIN, HEAL, STEPS = 50, 120, 200  # decisions at which a fault begins, by which it is noticed and where it can be ends, and of the run


class Fault(NamedTuple):
    """What the server does, whether from the start, and whether it recovers while the run goes on."""

    name: str
    at_start: bool
    heals: bool


SERVER = (
    Fault("refuses at start", True, False),
    Fault("dies midway", False, False),
    Fault("500 for a while", False, True),
    Fault("hangs", False, False),
    Fault("401", False, False),
    Fault("closes after accept", True, True),
)
SQLITE = (Fault("sqlite locked", False, True), Fault("sqlite: disk full", False, False))
SHORT = ("dies midway", "hangs", "sqlite locked")


def chosen(faults: tuple[Fault, ...]) -> list[Any]:
    """The cases of this lane."""
    return [pytest.param(f, id=f.name) for f in faults if FULL or f.name in SHORT]


# ------------------------------------------------------------------------------------------------ a server, and a door in front of it


class Door(BaseHTTPRequestHandler):
    """Hands requests on to the real server, or does what the file `mode` says."""

    protocol_version = "HTTP/1.1"
    mode: Path
    behind: int

    def handle_one(self) -> None:
        """One request of any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mode = self.mode.read_text()
        if mode in ("500", "401"):
            return self.answer(int(mode), {"Content-Type": "text/plain"}, b"on purpose")
        if mode == "hang":
            while self.mode.read_text() == "hang":
                time.sleep(0.05)
        if mode != "pass":
            self.close_connection = True
            return None
        there = http.client.HTTPConnection("127.0.0.1", self.behind)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
        there.request(self.command, self.path, body, kept)
        found = there.getresponse()
        content = found.read()
        there.close()
        return self.answer(found.status, {"Content-Type": found.headers.get("Content-Type", "text/plain")}, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        """Send a response."""
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


class Outage:
    """The address that the run knows. Begins open."""

    def __init__(self, folder: Path, behind: int) -> None:
        self.mode, self.behind, self.port, self.pid = folder / "mode", behind, free_port(), 0
        self.uri = f"http://127.0.0.1:{self.port}"
        self.heal()

    def begin(self, name: str) -> None:
        """Fail from now on."""
        self.mode.write_text({"500 for a while": "500", "401": "401", "hangs": "hang"}.get(name, "close"))
        if name in ("refuses at start", "dies midway"):
            self.end()

    def heal(self) -> None:
        """Work from now on."""
        self.mode.write_text("pass")
        if not self.pid:
            self.pid = child(self.serve)
            wait_for(self.port)

    def serve(self) -> None:
        """Life of the door's process."""
        Door.mode, Door.behind = self.mode, self.behind
        ThreadingHTTPServer(("127.0.0.1", self.port), Door).serve_forever()

    def end(self) -> None:
        """Refuse connections."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            ended(self.pid)
            self.pid = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise AssertionError("the server did not begin")


@contextmanager
def mlflow_server(home: Path) -> Iterator[tuple[int, Path]]:
    """A real MLflow server that lives in a folder: its port and its database."""
    port = free_port()
    words = ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *words, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(port)
        yield port, home / "mlflow.db"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """One for all server faults."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as there:
        yield there


# ------------------------------------------------------------------------------------------------ the campaign


def play(place: Path, fault: Fault, begin: Callable[[], None], heal: Callable[[], None]) -> bool:
    """Train through the fault, and send again what is left over. Whether the run ended well and all was taken."""
    cfg = tiny(place, steps=STEPS, log__mlflow=True, log__system=False, log__every=5, log__experiment=place.name, eval__every=0)
    if fault.at_start:
        begin()
    with Trainer(cfg) as trainer:
        original, due = trainer.collect, ["late"] if fault.at_start else ["begin", "late"]

        def collect() -> None:
            original()
            if "begin" in due and trainer.count.decisions >= BEGIN:
                due.remove("begin")
                assert trainer.log.sync(60.0)  # some of it was sent before
                begin()
            if "late" in due and trainer.count.decisions >= HEAL:
                due.remove("late")
                tried_in_vain(trainer, 5.0 if fault.name == "sqlite locked" else 60.0)
                if fault.heals:
                    heal()

        trainer.collect = collect  # type: ignore[method-assign]
        trainer.run()
        arrived = trainer.log.close("FINISHED", grace=60.0 if fault.heals else 3.0)
    said = warnings(place)
    assert arrived == fault.heals, said
    warned = sum("MLflow failed" in line for line in said)  # who only waits for sqlite's lock has not failed
    assert (warned == 1 or (warned == 0 and fault.name == "sqlite locked")) and all("\n" not in line for line in said), said
    if not fault.heals:
        heal()
    return trainer.step >= STEPS and loadable(place) and (arrived or resend(place))


def warnings(place: Path) -> list[str]:
    """What the run has said of its health."""
    return [str(row["warning"]) for row in read_metrics(place) if row["kind"] == "health"]


def tried_in_vain(trainer: Trainer, patience: float) -> None:
    """Nothing more is taken, and within `patience` seconds that is noticed: a request into a hanging server takes its time to fail."""
    until = time.monotonic() + patience
    assert not trainer.log.sync(1.0)
    while time.monotonic() < until and not any("MLflow failed" in line for line in warnings(trainer.dir)):
        assert not trainer.log.sync(1.0)


def wanted(place: Path) -> dict[str, list[tuple[int, int, float]]]:
    """(step, time, value) of every number of metrics.jsonl by MLflow's name for it."""
    found: dict[str, list[tuple[int, int, float]]] = {}
    for row in read_metrics(place):
        if row["kind"] in ("run", "artifact"):
            continue
        inside = f"{row['kind']}/{row['mode']}" if "mode" in row else row["kind"]
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("step", "time", "env"):
                name = key if key.startswith(f"{row['kind']}/") else f"{inside}/{key}"
                found.setdefault(clean(name), []).append((row["step"], round(1000 * row["time"]), float(value)))
    return {k: sorted(set(v)) for k, v in found.items()}


def check(place: Path, uri: str) -> None:
    """One MLflow run, finished, that holds every point once, and every artifact."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(place.name).experiment_id])
    assert run.info.status == "FINISHED"
    expected = wanted(place)
    assert set(run.data.metrics) == set(expected) and len(expected) > 20
    for name, points in expected.items():
        got = [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert repr(sorted(got)) == repr(points), name
    assert run.data.params["batch"] == "2"


def taken(folder: Path) -> list[str]:
    """Names of the artifacts that a store holds."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("fault", chosen(SERVER))
def test_a_server_that_fails_loses_nothing(
    fault: Fault, server: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port, database = server
    outage = Outage(tmp_path, port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", outage.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    place = tmp_path / fault.name.replace(" ", "-")
    try:
        good = play(place, fault, lambda: outage.begin(fault.name), outage.heal)
    finally:
        outage.end()
    assert "Traceback" not in capsys.readouterr().err
    check(place, f"sqlite:///{database}")
    assert "config.yaml" in taken(database.parent / "artifacts")
    record(f"tracking: {fault.name}", int(good), 1)
    assert good


@pytest.mark.parametrize("fault", chosen(SQLITE))
def test_a_database_that_fails_loses_nothing(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.chdir(tmp_path)
    place = tmp_path / fault.name.replace(" ", "-").replace(":", "")
    with ExitStack() as failing:

        def begin() -> None:
            failing.enter_context(locked(database) if fault.name == "sqlite locked" else full(database))

        good = play(place, fault, begin, failing.close)
    assert "Traceback" not in capsys.readouterr().err
    check(place, f"sqlite:///{database}")
    record(f"tracking: {fault.name}", int(good), 1)
    assert good


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process's transaction that does not end."""
    blocker = sqlite3.connect(database, timeout=60.0, isolation_level=None, check_same_thread=False)
    blocker.execute("begin exclusive")
    yield
    blocker.execute("rollback")
    blocker.close()


@contextmanager
def full(database: Path) -> Iterator[None]:
    """A database that cannot grow. Everything else that a small run writes is smaller."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (database.stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_an_artifact_that_was_refused_is_offered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics do not wait for it, and it comes with what is sent again."""
    from polydream.core.log import Log
    from polydream.core.tracking import load

    store = tmp_path / "artifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    from mlflow.tracking import MlflowClient

    experiment = MlflowClient().create_experiment("refused", str(store))
    store.write_text("in the way")
    said: list[str] = []
    log = Log(tmp_path / "run", mlflow=True, experiment="refused", system=False, say=said.append)
    (tmp_path / "run" / "film.txt").write_text("film")
    log.artifact(tmp_path / "run" / "film.txt")
    log.scalars(3, {"x": 1.0})
    assert log.sync(60.0) and not log.close()
    assert load(tmp_path / "run" / "mlflow.json")["owed"] == ["film.txt"]
    (run,) = MlflowClient().search_runs([experiment])
    assert run.data.metrics["train/x"] == 1.0 and run.info.status == "FINISHED"
    assert "did not take film.txt" in said[0] and "resend" in said[1] and len(said) == 2
    store.unlink()
    assert resend(tmp_path / "run")
    assert taken(store) == ["film.txt"] and load(tmp_path / "run" / "mlflow.json")["owed"] == []
