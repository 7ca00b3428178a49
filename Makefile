# Commands for users: `make quickstart` (train, compare, recommend) and `make demo` (open the model in a browser).
# Commands for developers: `make test`, `make test-slow`, `make bench`, `make docs` and `make wheel`.

# The newest supported Python that can create environments, because the newest JAX is faster and needs 3.12.
# Looks on the PATH, then among the Pythons of pyenv and uv.
PYENV = $${PYENV_ROOT:-$$HOME/.pyenv}/versions
UV = $${UV_PYTHON_INSTALL_DIR:-$${XDG_DATA_HOME:-$$HOME/.local/share}/uv/python}
PYTHON ?= $(shell for version in 3.13 3.12 3.11; do \
	for python in python$$version $(PYENV)/$$version.*/bin/python$$version $(UV)/cpython-$$version.*/bin/python$$version; do \
		"$$python" -c 'import ensurepip, venv' 2> /dev/null && echo "$$python" && exit; \
	done; done; echo python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# The pinned versions for this Python, with which the tests ran.
PINNED = $$(file=constraints-$$($(RUN) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; [ -f $$file ] && echo $$file || echo constraints.txt)

RUNS ?= runs
PORT ?= 8000

.PHONY: quickstart demo page test test-slow bench docs wheel clean

quickstart: $(INSTALLED)
	$(RUN) -m bert4rec_jax.main --config configs/quickstart.py --workdir $(RUNS)/quickstart

# The quickstart's model in the visitor's browser: http://localhost:8000 (PORT=8080 for another port).
demo: page
	@echo "open http://localhost:$(PORT) in a browser; stop with Ctrl-C"
	$(RUN) -m http.server --directory $(RUNS)/site --bind 127.0.0.1 $(PORT)

# Builds that page in runs/site without serving it.
page: $(INSTALLED) $(RUNS)/quickstart/results.json
	$(RUN) -m pip install --quiet -c $(PINNED) -e '.[page]'
	$(RUN) -m bert4rec_jax.export --workdir $(RUNS)/quickstart --format page --histories experiments/article_histories.json --out $(RUNS)/site

$(RUNS)/quickstart/results.json: $(INSTALLED)
	$(RUN) -m bert4rec_jax.main --config configs/quickstart.py --workdir $(RUNS)/quickstart

# One process per core, up to four (tests/conftest.py). A process without tests left takes some from another.
test: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .
	$(RUN) -m mypy
	$(RUN) -m pytest -n auto --dist=worksteal

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m slow

# BENCH="--ml_1m FOLDER --beauty FOLDER" measures on the real data sets instead of synthetic data of the same shape.
bench: $(INSTALLED)
	$(RUN) benchmarks/speed.py --out runs/bench $(BENCH)
	$(RUN) benchmarks/step.py --out runs/bench
	$(RUN) benchmarks/catalogue.py --out runs/bench
	$(RUN) benchmarks/recommend.py --out runs/bench
	$(RUN) benchmarks/data_pipeline.py --out runs/bench/ml-25m-shaped

# The documentation, in build/site. Warnings are errors, links and anchors are checked, and the notebooks are run and
# compared with their stored output.
docs: $(VENV)/.docs
	$(RUN) docs/_extensions/notebooks.py docs/notebooks/*.ipynb
	$(RUN) -m sphinx -W --keep-going -q -b html docs build/site
	$(RUN) docs/_extensions/check_links.py build/site
	@echo "the site is in build/site; to see it: $(RUN) -m http.server --directory build/site"

# Builds the wheel and tries it in an empty environment outside the checkout.
wheel:
	PYTHON=$(PYTHON) tests/packaging/try_wheel.sh build/dist

$(INSTALLED): pyproject.toml $(wildcard constraints*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; select one with make PYTHON=python3.12" >&2; exit 2; }
	@# An existing environment keeps its Python unless PYTHON is set.
	{ [ "$(origin PYTHON)" = file ] && [ -x $(RUN) ]; } || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c $(PINNED) -e '.[test]'
	@touch $@

$(VENV)/.docs: $(INSTALLED)
	$(RUN) -m pip install --quiet -c $(PINNED) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) runs build
