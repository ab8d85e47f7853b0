# Two commands need nothing but Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CPU build of torch where there is no NVIDIA GPU; the plain Linux wheel carries several GB of CUDA.
TORCH := $(shell if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; \
	then echo "torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 1"; else echo torch; fi)

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	$(BIN)/eas demo

test: $(VENV)/.installed-dev lint docs
	$(BIN)/pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs site
