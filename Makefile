# Everything runs in a virtual environment that is created on first use. Set PYTHON to use another interpreter.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.holdfast-ready
PEERS  := $(VENV)/.holdfast-peers

.PHONY: demo test test-all test-sqlite servers lint bench bench-full bench-docs wheel clean

demo: $(STAMP)
	$(BIN)/python cli.py demo

# Tests start hundreds of processes. Compiled modules make them faster, so write them even if the environment forbids it.
test test-all test-sqlite: export PYTHONDONTWRITEBYTECODE =

# Tests wait for processes and servers: four processes keep two processors busy.
WORKERS = -n 4 --dist loadscope --no-loadscope-reorder

# Tests commit durably: where they wait for no disk, they are faster. `make test-all` uses the disk.
IN_MEMORY = TMPDIR="$$($(BIN)/python tests/fast_folder.py)"

test: $(STAMP)
	$(IN_MEMORY) $(BIN)/python -m pytest $(WORKERS) -m "not slow and not bench"

# Also the long tests. What needs a server that is not installed is skipped; the last line says so.
test-all: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) -m "not bench"

# Install the servers that tests of deliveries start: Debian packages, with sudo unless you are root.
servers:
	$(PYTHON) -m tests.delivery.servers.install

# Run the tests without DuckDB, in a second environment with links to the packages of the first.
test-sqlite: $(STAMP)
	$(BIN)/python -m tests.without_duckdb.environment $(VENV)-sqlite
	$(IN_MEMORY) $(VENV)-sqlite/bin/python -m pytest $(WORKERS) -m "not slow and not bench" \
		$(addprefix tests/,contract property unit badinput cli delivery compat faults)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The core of the benchmarks, on a million points.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

# Every benchmark, on ten million points, with more peers; puts the figures into docs/benchmarks.md and the README.
bench-full: $(PEERS)
	$(BIN)/python -m benchmarks.run --full --document

# Make docs/benchmarks.md, the README's table and the pictures again from docs/benchmarks/results.json.
bench-docs: $(STAMP)
	$(BIN)/python -m benchmarks.document

wheel: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) $(VENV)-sqlite dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Holdfast needs Python 3.11 or newer; run: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[terminal]" --group dev
	touch $@
