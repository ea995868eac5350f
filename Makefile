# Every target makes what it needs. PYTHON chooses the interpreter; DEMO and TEST pass arguments on:
#   make demo DEMO="--requests 600 --link 80ms,2mbit"        make test TEST="tests/edge -k breaker"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EDGE_VENV := .venv-edge
RAY_VENV := .venv-ray
PIP := -m pip --disable-pip-version-check install --quiet --no-input --root-user-action=ignore
DEMO ?=
TEST ?=
# What the config of pytest names, and what the agent's tests import, beside the edge extra.
EDGE_TEST_NEEDS := pytest pytest-asyncio pytest-timeout hypothesis
RAY_TEST_NEEDS := $(EDGE_TEST_NEEDS) tritonclient

.PHONY: setup check test test-edge test-deploy test-faults test-ray bench demo proto screenshots clean
.DELETE_ON_ERROR:

setup: $(VENV)/stamp-dev

# --- environments -------------------------------------------------------------------------------------------------
# A Debian without python3-venv can still make one if it has a system pip; with neither there is nothing to build on.
define make-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is missing or older than 3.11; choose another with make PYTHON=..." >&2; exit 2; }
	@test -x $(1)/bin/python && $(1)/bin/python -c 'import pip' 2>/dev/null || { \
	  rm -rf $(1); \
	  $(PYTHON) -m venv $(1) >/dev/null 2>&1 || { \
	    $(PYTHON) -m venv --without-pip $(1) >/dev/null 2>&1 && \
	    $(PYTHON) -m pip --python $(1)/bin/python install --quiet pip >/dev/null 2>&1; } || \
	  { rm -rf $(1); echo "error: $(PYTHON) cannot make $(1); on Debian: apt install python3-venv" >&2; exit 2; }; }
endef

# A stamp is as new as its installation: later runs install nothing until pyproject.toml changes.
$(VENV)/stamp-serving: pyproject.toml
	$(call make-venv,$(VENV))
	@echo "installing what serving needs into $(VENV) (the first time takes a minute)"
	@$(BIN)/python $(PIP) -e '.[edge,cloud]'
	@touch $@

$(VENV)/stamp-dev: pyproject.toml
	$(call make-venv,$(VENV))
	@echo "installing everything that development needs into $(VENV) (the first time takes some minutes)"
	@$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@ $(VENV)/stamp-serving

$(EDGE_VENV)/stamp: pyproject.toml
	$(call make-venv,$(EDGE_VENV))
	@echo "installing only what the agent needs, and a test runner, into $(EDGE_VENV)"
	@$(EDGE_VENV)/bin/python $(PIP) -e '.[edge]' $(EDGE_TEST_NEEDS)
	@touch $@

$(RAY_VENV)/stamp: pyproject.toml
	$(call make-venv,$(RAY_VENV))
	@echo "installing the cloud server on Ray Serve, the agent, and a test runner, into $(RAY_VENV) (0.6 GB)"
	@$(RAY_VENV)/bin/python $(PIP) -e '.[edge,cloud,ray]' $(RAY_TEST_NEEDS)
	@touch $@

# --- the two commands ---------------------------------------------------------------------------------------------
demo: $(VENV)/stamp-serving
	@$(BIN)/edgemux demo $(DEMO)

test: $(VENV)/stamp-dev
	$(BIN)/python -m pytest -q -m "not faults and not deploy" $(TEST)
	@$(MAKE) --no-print-directory test-edge

# The agent on a machine that has nothing but its own extra. Making the tests' bundle takes the onnx package, which is
# not there, so it is made here and handed over; tests/conftest.py takes it from EDGEMUX_TINY_BUNDLE.
$(EDGE_VENV)/tiny: tests/conftest.py tests/split_stand.py $(EDGE_VENV)/stamp $(VENV)/stamp-dev
	@rm -rf $@
	@$(BIN)/python -c 'import pathlib, runpy; runpy.run_path("$<")["build_tiny_bundle"](pathlib.Path("$@"))'
	@$(BIN)/python -c 'import pathlib; from tests.split_stand import write_halves; \
	  write_halves(pathlib.Path("$@").with_name("halves"))'

test-edge: $(EDGE_VENV)/tiny
	@$(EDGE_VENV)/bin/python -c 'from importlib.util import find_spec as f; \
	  found = [name for name in ("torch", "onnx") if f(name)]; assert not found, f"$(EDGE_VENV) holds {found}"'
	EDGEMUX_TINY_BUNDLE=$(EDGE_VENV)/tiny $(EDGE_VENV)/bin/python -m pytest -q tests/edge

# What is deployed, against real programs: rules and dashboards in a Prometheus, the live page in a browser, the agent on
# arm64. Which programs of Debian's that needs:
DEPLOY_NEEDS := chromium mmdebstrap prometheus qemu-user-static shellcheck systemd
test-deploy: $(VENV)/stamp-dev
	@for program in chromium mmdebstrap promtool qemu-aarch64-static shellcheck systemd-analyze; do command -v $$program >/dev/null || \
	  { echo "error: $$program is missing; on Debian: apt install --no-install-recommends $(DEPLOY_NEEDS)" >&2; exit 2; }; done
	$(BIN)/python -m pytest -q -m deploy tests/deploy $(TEST)

# The failure matrix against real processes: a table of faults, and what became of every request. About 14 minutes.
test-faults: $(VENV)/stamp-dev
	$(BIN)/python -m pytest -q -m faults tests/system/faults $(TEST) || \
	  { echo "what failed is played once more, alone"; \
	    $(BIN)/python -m pytest -q -m faults tests/system/faults --last-failed --last-failed-no-failures none; }

# The cloud server on Ray Serve. Ray listens on all interfaces, so where the system allows it the tests run in a network
# namespace that has nothing but loopback.
test-ray: $(EDGE_VENV)/tiny $(RAY_VENV)/stamp
	@test="$(RAY_VENV)/bin/python -m pytest -q -rs tests/system/test_ray.py $(TEST)"; \
	  export EDGEMUX_TINY_BUNDLE=$(EDGE_VENV)/tiny; \
	  if unshare -rn true 2>/dev/null; then exec unshare -rn sh -c "ip link set lo up && exec $$test"; \
	  else echo "no network namespace can be made: Ray listens to others while this runs"; exec $$test; fi

# --- checks -------------------------------------------------------------------------------------------------------
check: $(VENV)/stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@drift=$$(mktemp -d) && trap 'rm -rf "$$drift"' EXIT && \
	  $(BIN)/python -m grpc_tools.protoc -Iproto --python_out="$$drift" --pyi_out="$$drift" $(PROTO) && \
	  for stub in $(STUBS); do diff -u "proto/$$stub" "$$drift/$$stub" || \
	    { echo "error: proto/$$stub is not what $(PROTO) makes; run make proto" >&2; exit 1; }; done && \
	  echo "The committed stubs are what $(PROTO) makes."

PROTO := proto/edgemux/wire/oip.proto
STUBS := edgemux/wire/oip_pb2.py edgemux/wire/oip_pb2.pyi

proto: $(VENV)/stamp-dev
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --pyi_out=proto $(PROTO)

bench: $(VENV)/stamp-dev
	@status=0; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || status=1; done; exit $$status

clean:
	rm -rf $(VENV) $(EDGE_VENV) $(RAY_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The agent on 64-bit Arm, in an emulated Debian with Python 3.11 and one with 3.13. As root; some minutes.
prove-arm64: $(VENV)/stamp-dev
	$(BIN)/python deploy/raspberry-pi/prove_arm64.py $(PROVE)
.PHONY: prove-arm64

# The pictures of the dashboards in docs/images, from a driven run of about three minutes. By hand, no part of CI: it fetches
# Grafana's components from npm (Node.js 20 or newer), and needs Debian's prometheus and chromium.
screenshots: $(VENV)/stamp-dev
	npm --prefix deploy/grafana/render ci --no-audit --no-fund
	@results=$$(mktemp) && trap 'rm -f "$$results"' EXIT && \
	  $(BIN)/python -m tests.deploy.dashboards.drive --stretch 4 --out "$$results" && \
	  node deploy/grafana/render/render.mjs "$$results" docs/images
