"""`python -m lab [--keep] [PYTEST ARGUMENT...]`: boot the nested lab and run the tests marked `lab` in it.

The output of the tests comes as they run, then a table of all of them. Exit status 0 when all passed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from typing import Final

from innkeeper.errors import InnkeeperError
from lab.nested import LAB_ENVIRONMENT, ROOT, NestedHost
from lab.summary import Result, read_junit, status, table

# A hung kernel in the lab must not hang `make lab`.
_TESTS_S: Final = 3600
_TEST_S: Final = 900
_JUNIT: Final = "/tmp/lab-results.xml"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the lab running for the next time")
    options, rest = parser.parse_known_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"lab: {time.monotonic() - begun:4.0f} s  {text}", file=sys.stderr, flush=True)

    host = NestedHost(say=say)
    ended = False
    try:
        host.start()
        host.put_code()
        say("this tree is in it; the tests begin")
        results = run_tests(host, rest)
        ended = True
    finally:
        host.close(keep=options.keep and ended)
    print(f"\n{table(results)}\nwith building and booting: {time.monotonic() - begun:.0f} s")
    return status(results)


def run_tests(host: NestedHost, arguments: list[str]) -> list[Result]:
    """Run pytest in the lab. Raises Failed when it left no results."""
    words = arguments or ["tests/lab"]
    command = shlex.join(["python3", "-m", "pytest", "-v", "-p", "no:cacheprovider", *words])
    script = (
        f"cd {ROOT} && rm -f {_JUNIT} && {LAB_ENVIRONMENT} timeout {_TESTS_S} {command}"
        f" -o timeout={_TEST_S} -o junit_family=xunit1 --junitxml={_JUNIT}"
    )
    host.follow(script, _TESTS_S + 60)
    return read_junit(host.fetch(_JUNIT).decode())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InnkeeperError as error:
        hint = f"; {error.hint}" if error.hint else ""
        sys.exit(f"lab: {error.message}{hint}")
