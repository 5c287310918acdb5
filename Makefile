# The developer's menu. Everything is installed into .venv/ here, nothing outside this folder.
BIN := .venv/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --exclude-newer "7 days"
SOURCES := pyproject.toml code/runtime/pyproject.toml

.PHONY: demo test check terraform bench lock

demo: .venv/commands.stamp  # the main job, without Docker: build, start, run, stop
	$(BIN)/python examples/demo.py

test: .venv/development.stamp  # all tests; those that need Docker are skipped without it (REQUIRE_DOCKER=1: fail)
	$(BIN)/python -X dev -m pytest $(ARGS)

check: .venv/development.stamp  # format, lint, types, import rules, the workflow in docs/ci
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows docs/ci/*.yml && $(BIN)/zizmor --offline --quiet --persona=auditor docs/ci/*.yml

terraform:  # terraform/ as far as it can be checked without AWS; sets itself up in .venv-terraform/
	sh .ci/terraform/check.sh

bench: .venv/development.stamp  # the figures of docs/benchmarks.md
	$(BIN)/python -m bench.bench

lock: .venv/development.stamp  # new versions into all lock files
	$(LOCK) --upgrade -o requirements.lock $(SOURCES) requirements.in && $(LOCK) --upgrade -o requirements-dev.lock -c requirements.lock $(SOURCES) requirements.in requirements-dev.in && $(LOCK) --upgrade -o .ci/terraform/requirements.lock .ci/terraform/requirements.in

.venv/commands.stamp: requirements.lock $(SOURCES)
	sh .ci/venv.sh $< && touch $@

.venv/development.stamp: requirements-dev.lock .venv/commands.stamp
	sh .ci/venv.sh $< && touch $@
