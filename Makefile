# Set-up, run, test: see README.md. Everything lands in .venv/ and .cache/, both ignored by git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= auto
EXTRAS ?= dev,docs,bench
CHAOS := kill=*,every=10ms,jitter=0.5

.PHONY: run test check docs bench bench-compare firmware guests messages format clean

# Twice the same session at the guest's console: undisturbed, and with every peripheral being killed.
run: $(STAMP)
	@if $(MAKE) --no-print-directory firmware; then board=microbit; else \
	    echo "no micro:bit firmware: running the built-in demo guest instead"; board=demo; fi; \
	$(BIN)/tubevisor prove config/$$board.yaml --input config/$$board.session.txt --chaos '$(CHAOS)'

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" sh supervisor/messages.sh --check
	$(BIN)/python -m pytest -q tests/test_architecture.py

# The pages under docs/ as HTML, in docs/_build/html; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky --jobs auto docs docs/_build/html

# What it costs, beside what else there is: some minutes, into docs/benchmarks.json and the page of it.
bench: $(STAMP)
	@$(MAKE) --no-print-directory firmware || echo "no micro:bit firmware: measuring the built-in demo guest"
	@PYTHON=$(BIN)/python sh benchmarks/fio.sh || echo "no fio: disks are not measured in a guest"
	$(BIN)/python -m benchmarks

# What has got slower from one file of results to another: make bench-compare OLD=before.json NEW=after.json
bench-compare: $(STAMP)
	@$(BIN)/python -m benchmarks.compare $(OLD) $(NEW)

# Debian's MicroPython for the BBC micro:bit, unpacked into .cache/firmware; needs no root.
firmware:
	@sh machines/firmware.sh

# Linux guests for QEMU and User-Mode Linux, from Debian's packages, into .cache/guests; needs no root.
guests: $(STAMP)
	@PYTHON=$(BIN)/python sh machines/guests.sh

messages: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh supervisor/messages.sh

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(STAMP): pyproject.toml supervisor/worker/_mailbox.c supervisor/worker/compile.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) .cache docs/_build
