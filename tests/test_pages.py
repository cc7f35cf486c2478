"""Reports in a real browser: everything is drawn, nothing is complained about, nothing is asked of any network."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from polydream.__main__ import main
from polydream.core.log import Log
from polydream.core.pictures import Picture, save
from polydream.eval import serve
from polydream.eval.grid import Grid
from polydream.eval.report import write_report
from polydream.eval.summary import write_summary
from tests.browser import CHROMIUM, Browser
from tests.eval.benches import finished
from tests.test_report import make_run

DRAWN = "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.main-svg') && plot.querySelector('.trace'))"
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with a picture, and a benchmark."""
    run = make_run(tmp_path_factory.mktemp("run"))
    save(run / "pictures/map-000000100.png", Picture(torch.full((40, 60, 3), 99, dtype=torch.uint8), "A map."))
    grid = finished(tmp_path_factory.mktemp("benchmark"))
    grid.save()
    return {"run": write_report(run), "benchmark": write_summary(grid)}


@browser
@pytest.mark.parametrize(("width", "phone", "dark"), [(1200, False, False), (390, True, True)], ids=["desktop", "phone in the dark"])
@pytest.mark.parametrize("kind", ["run", "benchmark"])
def test_a_page_from_disk_is_drawn_without_network_or_complaint(
    pages: dict[str, Path], kind: str, width: int, phone: bool, dark: bool
) -> None:
    with Browser(width, 900, phone=phone, dark=dark) as tab:
        tab.open(pages[kind].as_uri())
        tab.until(DRAWN)
        assert tab.ask("document.querySelectorAll('.plot').length") == {"run": 1, "benchmark": 16}[kind]
        assert tab.complaints == []
        assert {request.partition(":")[0] for request in tab.requests} <= {"file", "data"}
        assert [request for request in tab.requests if request.startswith("file:")] == [pages[kind].as_uri()]
        assert tab.ask("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        ink, paper = ("rgb(230, 234, 239)", "rgb(15, 19, 24)") if dark else ("rgb(27, 31, 36)", "rgb(255, 255, 255)")
        assert tab.ask("getComputedStyle(document.body).backgroundColor") == paper
        assert tab.ask("getComputedStyle(document.querySelector('.plot .xtick text')).fill") == ink
        assert tab.ask("[...document.images].every(image => image.naturalWidth > 0)")


@browser
def test_plots_follow_when_the_reader_turns_to_the_dark(pages: dict[str, Path]) -> None:
    with Browser() as tab:
        tab.open(pages["run"].as_uri())
        tab.until(DRAWN)
        tab.dark(True)
        tab.until("getComputedStyle(document.querySelector('.plot .xtick text')).fill == 'rgb(230, 234, 239)'")
        assert tab.complaints == []


# ---------------------------------------------------------------------------------------------------- a run that goes on


@pytest.fixture
def server(tmp_path: Path) -> Iterator[serve.Server]:
    run = make_run(tmp_path / "run")
    save(run / "pictures/map-000000100.png", Picture(torch.zeros(2, 2, 3, dtype=torch.uint8), "A map."))
    with serve.Server(run, write_report) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server: serve.Server, path: str, host: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(serve.HOST, server.server_port, timeout=30)
    connection.request("GET", path, headers={"Host": host or f"{serve.HOST}:{server.server_port}"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_server_hands_out_the_report_and_nothing_private(server: serve.Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page = fetch(server, "/")
    assert status == 200 and b"dmc/cartpole_balance" in page and b"/version" in page
    assert fetch(server, "/pictures/map-000000100.png")[1] == (server.directory / "pictures/map-000000100.png").read_bytes()
    for path in ("/config.yaml", "/../run/metrics.jsonl", "/%2e%2e/%2e%2e/etc/passwd", "/pictures/../../other.png", "/nothing.mp4"):
        assert fetch(server, path)[0] == 404, path
    assert fetch(server, "/", host="evil.example:80")[0] == 403, "another site's name that points here"


def test_the_page_grows_with_the_run(server: serve.Server) -> None:
    before = fetch(server, "/version")[1]
    assert fetch(server, "/version")[1] == before
    with Log(server.directory, mlflow=False) as log:
        log.episode(51_000, 7.0, 500)
    assert fetch(server, "/version")[1] != before
    assert b"so far 51,000 of 60,000 steps" in fetch(server, "/")[1]
    assert b"setInterval" not in (server.directory / "report.html").read_bytes(), "the file itself does not look for a server"


def test_a_benchmark_is_served_as_well(tmp_path: Path) -> None:
    grid = finished(tmp_path)
    grid.save()
    server = serve.Server(tmp_path, lambda path: write_summary(Grid.read(path)))
    with server:
        before = server.version()
        assert b"other is better than base" in server.report()
        grid.cells[0].write(done=False)
        assert server.version() != before
        assert b"1 of 8 cells have no score" in server.report()


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = finished(tmp_path)
    assert main(["report", str(tmp_path)]) == 2 and "metrics.jsonl" in capsys.readouterr().err
    grid.save()
    assert main(["report", str(tmp_path)]) == 0 and capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    for words, cure in ((["--serv"], "did you mean"), (["--serve", "--port", "700000"], "another --port")):
        assert main(["report", str(tmp_path), *words]) == 2 and cure in capsys.readouterr().err


@browser
def test_an_open_page_reloads_when_the_run_has_grown(server: serve.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "FOLLOW", serve.FOLLOW.replace("3000", "100"))
    with Browser() as tab:
        tab.open(server.address)
        tab.until(DRAWN)
        assert "50,000 of 60,000" in tab.ask("document.body.innerText")
        with Log(server.directory, mlflow=False) as log:
            log.episode(52_000, 7.0, 500)
        tab.until("document.body && document.body.innerText.includes('52,000 of 60,000')")
        assert tab.complaints == []
        assert all(request.startswith((server.address, "data:")) for request in tab.requests)
