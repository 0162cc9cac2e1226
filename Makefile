# Everything happens in .venv, which is made on first use and refreshed when pyproject.toml or constraints.txt change;
# `make test-newest` has .venv-newest and constraints-newest.txt of its own.
# PYTHON=python3.12 picks the interpreter, CXX=clang++ the compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
PIP := $(BIN)/pip --disable-pip-version-check install -c $(CONSTRAINTS)
CPP = $$(find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

# What each environment stamp installs beside the package (the extras of pyproject.toml).
EXTRAS_demo := results,plot
EXTRAS_test := test
EXTRAS_lint := lint,results,plot
EXTRAS_bench := test,jax
EXTRAS_docs := docs,notebook,results,plot,analysis
EXTRAS_package := package

# What `make test-newest` runs, about two minutes on two quiet cores: what has met a newer Python, NumPy, Zarr or xarray
# and failed, and one file for each part of the package.
CORE := $(addprefix tests/test_, import.py info.py broadcast.py models.py metrics.py plot.py cli.py readme.py \
	metrics_exact.py metrics_dictionaries.py run_store.py optim.py schedule.py sparse_modules.py sparsify.py topology_attached.py lottery.py \
	fit_topology.py fit_results.py sweep_topology.py store_place.py store_damage.py evaluate.py evaluate_methods.py \
	odd_values.py)

.PHONY: help demo develop test test-slow test-newest core lint format docs docs-outputs wheel wheel-check release \
	compile-commands bench gpu-check emulate emulate-all count sanitize native clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help:
	@echo "make demo      train the n=2, m=1 phase diagram and draw it (phase_diagram.png)"
	@echo "make develop   .venv with what tests and lint need, and the native module"
	@echo "make test      run the tests, but for the slow ones"
	@echo "make test-slow run those: other processes, compilers, notebooks, whole benches"
	@echo "make test-newest  run a core of them on the newest Python that is here, with the newest packages"
	@echo "make lint      check formatting, style, types and spelling"
	@echo "make format    format the sources in place"
	@echo "make docs      build the documentation into build/site; docs-outputs runs the notebooks for it first (minutes)"
	@echo "make wheel     build the wheel that people install; wheel-check: try it away from the sources, without a compiler"
	@echo "make release   check the papers and make what is released; nothing is uploaded"
	@echo "make compile-commands  write compile_commands.json for editors"
	@echo "make bench     compare with PyTorch, JAX (installs it) and plain C++, and print the table"
	@echo "make gpu-check build, test, sanitize and measure on a GPU, with the python3 that is there; writes a record"
	@echo "make emulate   run the core of the GPU tests on an emulator of PTX (TOYKERN_EMULATOR); emulate-all: all of them"
	@echo "make count     count a model-step's instructions there, for docs/gpu_trainer.md"
	@echo "make sanitize  run the small tests on a build with ASan and UBSan"
	@echo "make clean     remove what was built, and .venv"

demo: $(VENV)/.with-demo native
	$(BIN)/toykern phase-diagram --overwrite

develop: $(VENV)/.with-test $(VENV)/.with-lint native

# In two processes, a file in one of them: the suite is two-core work. TEST_JOBS=0 takes one process and shows output at
# once. A change is taken when both halves have passed (.ci/run).
TEST_JOBS ?= 2
PYTEST = $(BIN)/pytest -q -n $(TEST_JOBS) --dist loadfile
test: $(VENV)/.with-test native
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.with-test native
	$(PYTEST) -m slow

# The newest Python of tools/newest_python.py (NEWEST_PYTHON=/path/to/python3.13 says which), with the torch of the
# package index: a CUDA build, which is what most people have; 2.5 GB to fetch, 5 GB on disk. The kernels for GPUs are
# left out, since `make test` has built them.
test-newest:
	@python=$${NEWEST_PYTHON:-$$($(PYTHON) tools/newest_python.py)} && \
	if [ -z "$$python" ]; then \
	  echo "test-newest: there is no Python here that is newer than that of make test; nothing to run"; \
	else \
	  echo "test-newest: $$python"; \
	  TOYKERN_CUDA=0 $(MAKE) --no-print-directory core PYTHON="$$python" VENV=.venv-newest \
	    CONSTRAINTS=constraints-newest.txt; \
	fi

core: $(VENV)/.with-test native
	$(PYTEST) -m "not slow" -p no:cacheprovider $(CORE)

lint: $(VENV)/.with-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy toykern/ tests/typed_script.py
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# One wheel for every torch and every GPU: with the CUDA kernels where nvcc is found.
wheel: $(VENV)/.with-package
	$(BIN)/python tools/make_wheel.py

# In build/wheel-venv, with the pinned torch.
wheel-check: $(VENV)/.created
	$(BIN)/python tools/make_wheel.py --check --constraints $(CONSTRAINTS) --jobs $(TEST_JOBS)

release: $(VENV)/.with-package
	$(BIN)/python tools/release.py

compile-commands: $(VENV)/.created
	$(BIN)/python tools/compile_commands.py

format: $(VENV)/.with-lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

# Pages and links in strict mode: a warning ends it. The site needs no network to be read.
docs: $(VENV)/.with-docs native
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR) $(BIN)/mkdocs build --quiet
	$(BIN)/python tools/docs_site/offline.py build/site

# What notebooks write and draw, for their pages; kept in build/notebooks as long as a notebook stays what it is.
docs-outputs: $(VENV)/.with-docs native
	$(BIN)/python tools/docs_site/run_notebooks.py

bench: $(VENV)/.with-bench native
	$(BIN)/python -m bench

# No virtual environment: a machine with a GPU comes with a PyTorch that fits it, and often without a network.
# GPU_CHECK="--call first" is the first of two calls, GPU_CHECK="--only bench --budget 300" runs single stages.
gpu-check:
	$(PYTHON) tools/gpu_check.py $(GPU_CHECK)

# The GPU tests where there is none; the emulator is no part of the project. EMULATE="--seed 5" repeats an order.
emulate: $(VENV)/.with-test native
	$(BIN)/python tools/emulate.py $(EMULATE)

emulate-all: $(VENV)/.with-test native
	$(BIN)/python tools/emulate.py --all $(EMULATE)

count: $(VENV)/.with-test native
	$(BIN)/python tools/count_instructions.py --write

# A second build of the module in a copy of the package under build/sanitize. The sanitizers' run-time libraries have
# to be in the process before Python is, and libstdc++ with them, or they cannot see C++ exceptions.
sanitize: $(VENV)/.with-test
	rm -rf build/sanitize
	TOYKERN_SANITIZE=address,undefined $(BIN)/python setup.py -q build --build-lib build/sanitize
	TOYKERN_EXPECT_SANITIZE=1 PYTHONPATH=$(CURDIR)/build/sanitize PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$(ldd build/sanitize/toykern/_native*.so | awk '/asan|ubsan|libstdc/ { print $$3 }' | xargs)" \
	$(BIN)/pytest -q -m sanitize --capture=sys -p no:cacheprovider -o pythonpath="build/sanitize tests ."

# Nothing to do takes a second; a changed source compiles that source.
native: $(VENV)/.created
	$(BIN)/python setup.py -q build_ext --inplace

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "toykern needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Always with the constraints: without them pip would take whichever torch is newest.
$(VENV)/.with-%: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	$(PIP) setuptools wheel pybind11 ninja
	$(PIP) --no-build-isolation -e ".[$(EXTRAS_$*)]"
	@touch $@

.PRECIOUS: $(VENV)/.with-%

clean:
	rm -rf build dist $(VENV) .venv-newest compile_commands.json *.egg-info toykern/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
