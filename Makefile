# Set-up, run, test: see README.md. Everything lands in .venv/ and .cache/, both ignored by git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test check firmware messages clean

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

messages: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh supervisor/messages.sh

clean:
	rm -rf $(VENV) .cache
