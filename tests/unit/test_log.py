"""One line per record, whatever it holds, and no secrets."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

import pytest

from innkeeper.telemetry.log import ROOT, fields, setup


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    logger = logging.getLogger(ROOT)
    before = logger.handlers[:], logger.level, logger.propagate
    stream = io.StringIO()
    setup("INFO", stream)
    yield stream
    logger.handlers[:], logger.level, logger.propagate = before


def test_a_line(stream: io.StringIO) -> None:
    log = logging.getLogger("innkeeper.api")
    log.info("started", extra=fields(name="web", took_s=0.25, why='it "was"\nasked', token="abc"))
    log.debug("not shown")
    stamp, rest = stream.getvalue().split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert rest == 'INFO api: started name=web took_s=0.25 why="it \\"was\\"\\nasked" token=***\n'


def test_a_traceback_stays_on_the_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        logging.getLogger("innkeeper").error("bug %s\nx", 1, exc_info=error)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert "ERROR innkeeper: bug 1 x traceback=" in line
    assert "ValueError" in line


def test_set_up_twice_logs_once(stream: io.StringIO) -> None:
    setup("INFO", stream)
    logging.getLogger("innkeeper.x").warning("once")
    assert stream.getvalue().count("once") == 1
