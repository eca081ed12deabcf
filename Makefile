# Two commands do everything: `make demo` shows a VM at work, `make test` proves the whole.
.PHONY: demo test test-fast lint bench lab setup clean

demo:
	@scripts/setup demo
	@.venv/bin/python scripts/demo.py

test:
	@scripts/setup test
	@scripts/test

# What needs no guest: seconds.
test-fast:
	@scripts/setup test
	@.venv/bin/pytest -q tests/unit tests/golden tests/contract tests/style -m "not vm"

lint:
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

bench:
	@scripts/setup test
	@.venv/bin/python -m bench

# A VM that is a host of VMs itself: real KVM, NUMA, cgroup v2. `make lab LAB=--keep` leaves it running.
lab:
	@scripts/setup test
	@.venv/bin/python -m lab $(LAB)

setup:
	@scripts/setup test

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
