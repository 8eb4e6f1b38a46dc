# The two commands: `make demo` and `make test`. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

MINUTES ?= 10
TARGET ?=
SEEDS ?=
FROM ?= 1
# Of the tests (tests/lanes.py): three where there are two cores, else (0) all in one process.
WORKERS ?= $(if $(filter 0 1,$(shell nproc 2> /dev/null || echo 1)),0,3)

# Every node and every command is a process of its own, which would compile our code once more:
# much of its start. Images for Python often set this.
unexport PYTHONDONTWRITEBYTECODE

# How many tests in all are tried again when they fail (tests/again.py); which ones are left out.
AGAIN ?= 0
LESS ?=

.PHONY: help demo test lint bench nightly mutations planted drills fuzz sim soak audit proto docs clean setup-demo \
	setup-test engines cluster tests-alone lint-beside sim-fixed

help:
	@echo "make demo       set up, then kill an IDC under load and check that nothing was lost"
	@echo "make test       set up, then lint, and run all tests but the nightly ones meanwhile"
	@echo "make engines    set up, then install all external engines (once; some minutes)"
	@echo "make cluster    install what the Kubernetes tests need (once; 15 minutes)"
	@echo "make lint       check format, lint, types, layers, generated stubs and docs"
	@echo "make audit      check locked dependencies for known vulnerabilities (needs the network)"
	@echo "make nightly    run all that is too long for each change, 2,000 seeds too (a night, at two cores)"
	@echo "make drills     run every ready-made drill; reports in build/drills (15 minutes)"
	@echo "make mutations  reintroduce each known defect in a copy; its test must fail"
	@echo "make planted    plant each of eleven bugs in a copy; the simulation must find it (10 minutes)"
	@echo "make fuzz       coverage-guided fuzzing; MINUTES=10 for all targets, or TARGET=gateway"
	@echo "make soak       20 minutes of chat; memory of every process plotted in build/soak"
	@echo "make sim        simulate deployments with faults; SEEDS=8 FROM=1, or MINUTES=3 FROM=commit"
	@echo "make sim-fixed  simulate the seeds that meet every rare branch among them, as a test does too"
	@echo "make bench      run the benchmarks; needs an otherwise idle machine"
	@echo "make proto      generate the Protobuf stubs"
	@echo "make docs       generate docs/cli.md, CRDs, the dashboard and parts of other docs"
	@echo "make clean      remove build output; keep .venv"

setup-demo:
	@$(PYTHON) tools/setup.py demo

setup-test:
	@$(PYTHON) tools/setup.py test

demo: setup-demo
	@$(BIN)/imctl demo

# Beside each other: the tests wait as much as they compute, and what lint finds is shown at once.
test: setup-test
	@$(MAKE) --no-print-directory -j2 tests-alone lint-beside

tests-alone:
	@$(BIN)/pytest -m "not nightly" -n $(WORKERS) $(addprefix --deselect=,$(LESS)) $(if $(filter-out 0,$(AGAIN)),--max-suite-reruns $(AGAIN) --rerun-show-tracebacks)

lint-beside:
	@nice -n 10 $(MAKE) --no-print-directory lint

engines: setup-test
	@$(BIN)/imctl engines install all
	@$(BIN)/imctl engines doctor

cluster: setup-test
	@$(BIN)/python -m imctl.testing.cluster

lint: setup-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy -n 2
	@$(BIN)/python -m tools.audit
	@$(BIN)/lint-imports --no-cache
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/genproto.py --check
	@$(BIN)/python -m tools.gencli --check
	@$(BIN)/python -m tools.gencapacity --check
	@$(BIN)/python -m tools.genmetrics --check
	@$(BIN)/python -m tools.gendashboard --check
	@$(BIN)/python -m tools.gencrds --check
	@$(BIN)/python -m tools.genadminapi --check

bench: setup-test
	@$(BIN)/python -m benchmarks

# Benchmarks are a command of their own: figures taken between tests on a warm machine would mislead.
nightly: setup-test mutations planted
	@$(BIN)/pytest -m nightly
	@$(BIN)/python -m fuzz --minutes $(MINUTES)
	@$(BIN)/python -m services.sim --from commit --seeds 2000

drills: setup-test
	@$(BIN)/python -m tools.drills

mutations: setup-test
	@$(BIN)/python -m tools.mutations

planted: setup-test
	@$(BIN)/python -m tools.planted

fuzz: setup-test
	@$(BIN)/python -m fuzz --minutes $(MINUTES) $(TARGET)

audit: setup-test
	@$(BIN)/python -m tools.audit --known

soak: setup-test
	@$(BIN)/python -m tools.soak

sim: setup-test
	@$(BIN)/python -m services.sim --from $(FROM) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(filter command line,$(origin MINUTES)),--minutes $(MINUTES))

sim-fixed: setup-test
	@$(BIN)/python -m services.sim --fixed

proto: setup-test
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/genproto.py

docs: setup-test
	@$(BIN)/python -m tools.gencli
	@$(BIN)/python -m tools.gencapacity
	@$(BIN)/python -m tools.genmetrics
	@$(BIN)/python -m tools.gendashboard
	@$(BIN)/python -m tools.gencrds
	@$(BIN)/python -m tools.genadminapi

clean:
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
