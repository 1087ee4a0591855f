# Each target sets itself up: .venv is made once from requirements-dev.lock, and again when that changes.
# PYTHON=/path/to/python uses that environment instead and installs nothing.

# A profile is a number of examples, and runs to its end unless DURATION is given too.
ifeq ($(PROFILE),)
DURATION ?= 60
endif

# Taken as written, whatever quotes, spaces or dollar signs they hold, and handed on through the environment.
override CASE := $(value CASE)
override WHY := $(value WHY)
override FILE := $(value FILE)
override SEED := $(value SEED)
override PROFILE := $(value PROFILE)
override DURATION := $(value DURATION)
export CASE WHY FILE SEED PROFILE DURATION

LOCK := requirements-dev.lock
ifeq ($(strip $(PYTHON)),)
PY := .venv/bin/python
SETUP := venv
else
PY := $(PYTHON)
SETUP := environment
endif

.DEFAULT_GOAL := help
.PHONY: help test compat fuzz bench repro keep judge mutants sanitize check format lock clean venv environment compiler
.PHONY: case why file

help: ## print this help
	@echo 'usage: make TARGET [VARIABLE=value ...]'
	@echo
	@awk -F ' *## *' '/^[a-z]+:.*## /{ split($$1, name, ":"); printf "  %-8s %s\n", name[1], $$2 }' Makefile
	@echo
	@echo '  PYTHON=/path/to/python   use this environment; install nothing'
	@echo '  CONVT3D_REQUIRE_GPU=1    a missing GPU is an error'

test: $(SETUP) compiler ## run the tests in parallel; SEED=, PROFILE=dev|ci|nightly, ARGS= for pytest
	@CONVT3D_PROFILE="$${PROFILE:-$$CONVT3D_PROFILE}" "$(PY)" -m pytest -n auto --maxprocesses 16 \
	    --dist worksteal $${SEED:+--hypothesis-seed="$$SEED"} $(ARGS)

# An environment a version, kept until `make clean`. The bounds are what PyTorch 2.0 needs itself: it is older than
# numpy 2 and setuptools 70, and has no build for a Python above 3.11.
COMPAT_VERSIONS ?= 2.0.1 newest
COMPAT_PACKAGES := hypothesis pytest pytest-xdist ninja expecttest pyyaml tree-sitter tree-sitter-cpp
compat: compiler ## run the tests with the oldest torch and the newest; COMPAT_VERSIONS="2.4.1 2.9.0" for others
	@set -e; for version in $(COMPAT_VERSIONS); do \
	    venv=".venv-torch-$$version"; \
	    case $$version in \
	        newest) packages="torch numpy setuptools" ;; \
	        2.[0-2].*) packages="torch==$$version numpy<2 setuptools<70" ;; \
	        *) packages="torch==$$version numpy setuptools" ;; \
	    esac; \
	    if ! [ -e "$$venv/finished" ]; then \
	        echo "Setting up $$venv, once. This downloads torch and takes minutes."; \
	        "$(or $(strip $(PYTHON)),python3)" -m venv --clear "$$venv"; \
	        "$$venv/bin/python" -m pip install -qq --disable-pip-version-check $$packages $(COMPAT_PACKAGES) || { \
	            echo "make: pip could not install torch $$version for $$("$$venv/bin/python" --version);" \
	                "PYTHON=/path/to/python3.11 gives it another" >&2; exit 1; }; \
	        touch "$$venv/finished"; \
	    fi; \
	    $(MAKE) --no-print-directory test PYTHON="$$venv/bin/python"; \
	done

fuzz: $(SETUP) compiler ## fuzz the kernels for DURATION=60 seconds; SEED=, PROFILE=, ARGS=
	@"$(PY)" -m fuzz run $${DURATION:+--duration="$$DURATION"} \
	    $${PROFILE:+--profile="$$PROFILE"} $${SEED:+--seed="$$SEED"} $(ARGS)

repro: case $(SETUP) compiler ## run CASE=... on every subject and print the card; ARGS=
	@"$(PY)" -m fuzz repro "$$CASE" $(ARGS)

keep: case why $(SETUP) ## append CASE=... to the corpus, with the reason WHY="..."; ARGS=
	@"$(PY)" -m fuzz keep "$$CASE" --why="$$WHY" $(ARGS)

judge: file $(SETUP) compiler ## judge the ConvTranspose3d in FILE=path.py[:Name], yours or anybody's; ARGS=
	@"$(PY)" -m fuzz judge "$$FILE" $(ARGS)

bench: $(SETUP) compiler ## time the kernels beside PyTorch's op, on a GPU; CASE= for one case, ARGS=
	@"$(PY)" -m fuzz bench $${CASE:+"$$CASE"} $(ARGS)

mutants: $(SETUP) compiler ## plant bugs in the kernels and count which ones the harness catches; ARGS=
	@"$(PY)" -m fuzz mutants $(ARGS)

sanitize: $(SETUP) compiler ## run the corpus and random cases under sanitizers, on a GPU compute-sanitizer's; ARGS=
	@"$(PY)" -m fuzz sanitize $(ARGS)

check: $(SETUP) compiler ## lint, format, types, and the kernels through g++ and, where there is one, nvcc
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .
	@"$(PY)" -m mypy
	@"$(PY)" -m convt3d.kernels format --check
	@"$(PY)" -m convt3d.kernels compile

format: $(SETUP) ## format the Python files and the CUDA C++ strings in place
	@"$(PY)" -m ruff check --fix --exit-zero --quiet .
	@"$(PY)" -m ruff format .
	@"$(PY)" -m convt3d.kernels format

# torch stays where it is (to move it, edit its line first); a local part such as +cpu and what only a CUDA build of
# torch needs are left out. Where a package has a line for Python 3.10, its new line is for 3.11 and above.
lock: ## pin the newest versions that pyproject.toml allows, with Python 3.11 or above
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	"$(or $(strip $(PYTHON)),python3)" -m venv "$$scratch/venv" && \
	"$$scratch/venv/bin/python" -m pip install -q --disable-pip-version-check \
	    "$$(grep '^torch==' $(LOCK))" '.[dev]' && \
	"$$scratch/venv/bin/python" -m pip freeze --all --exclude pip --exclude convt3d \
	    | sed 's/+.*//' | grep -vE '^(nvidia|cuda|triton)' > "$$scratch/frozen" && \
	awk -F == 'FNR == NR { if (/python_version </) { old[$$1]; print }; next } \
	    { print $$0 ($$1 in old ? " ; python_version >= \"3.11\"" : "") }' \
	    $(LOCK) "$$scratch/frozen" | LC_ALL=C sort -f > "$$scratch/pins" && \
	grep '^#' $(LOCK) | cat - "$$scratch/pins" > "$$scratch/lock" && \
	cp "$$scratch/lock" $(LOCK) && echo 'wrote $(LOCK)'

clean: ## remove .venv, caches and build outputs; findings in .convt3d/ stay
	@rm -rf .venv .venv-torch-* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv/lock is a copy of the lock that .venv was made from, written last.
venv:
	@if .venv/bin/python -c '' 2>/dev/null && cmp -s $(LOCK) .venv/lock; then exit 0; fi; \
	command -v python3 >/dev/null || { \
	    echo 'make: no python3 on PATH; install Python 3.10 or newer, or give PYTHON=' >&2; exit 1; }; \
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "make: $$(python3 --version), but Python must be 3.10 or newer; or give PYTHON=" >&2; \
	    exit 1; }; \
	echo 'Setting up .venv from $(LOCK), once. This downloads torch and takes minutes.'; \
	python3 -m venv --clear .venv || { \
	    echo 'make: python3 cannot make an environment; Debian and Ubuntu: apt-get install python3-venv' >&2; \
	    exit 1; }; \
	.venv/bin/python -m pip install -qq --disable-pip-version-check -r $(LOCK) || { \
	    echo 'make: pip could not install $(LOCK); see "Environment" in CONTRIBUTING.md' >&2; exit 1; }; \
	cp $(LOCK) .venv/lock

NEEDED := torch numpy hypothesis pytest xdist ninja setuptools
environment:
	@"$(PY)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo 'make: PYTHON=$(PY), but must be the path of a Python 3.10 or newer' >&2; exit 1; }
	@"$(PY)" -c 'import sys; from importlib.util import find_spec; \
	missing = [name for name in sys.argv[1:] if find_spec(name) is None]; \
	sys.exit(f"make: PYTHON={sys.executable} has no {missing}; see $(LOCK)" if missing else 0)' $(NEEDED)

compiler:
	@command -v $(CXX) >/dev/null || { \
	    echo 'make: no $(CXX) on PATH; the kernels need a C++17 compiler. Debian and Ubuntu: apt-get install g++' >&2; \
	    exit 1; }

case:
	@[ -n "$$CASE" ] || { \
	    echo 'make: CASE= is missing; a case string stands on every failure card, for example' >&2; \
	    echo '  make repro CASE=f32_n1_g1_ci2_co3_i2x3x4_k3_s2_p1_op1_int_seed7' >&2; exit 2; }

why:
	@[ -n "$$WHY" ] || { \
	    echo 'make: WHY= is missing; say why the corpus must hold this case, for example' >&2; \
	    echo '  make keep CASE=... WHY="last tap lost when output_padding is stride - 1"' >&2; exit 2; }

file:
	@[ -n "$$FILE" ] || { \
	    echo 'make: FILE= is missing; say which implementation to judge, for example' >&2; \
	    echo '  make judge FILE=model_new.py:ModelNew' >&2; exit 2; }
