# The commands: `make quickstart` (train, compare, recommend), `make demo` (look at it in a browser) and `make test`.
# The newest Python that is here and can make environments: JAX gets faster, and its newest needs 3.12.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11; do \
	$$python -c 'import ensurepip, venv' 2> /dev/null && echo $$python && exit; done; echo python3)
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# The versions that the tests ran with, of the Python that is used.
PINNED = $$(file=constraints-$$($(RUN) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; [ -f $$file ] && echo $$file || echo constraints.txt)

PORT ?= 8000

.PHONY: quickstart demo test test-slow bench docs wheel clean

quickstart: $(INSTALLED)
	$(RUN) -m bert4rec_jax.main --config configs/quickstart.py --workdir runs/quickstart

# The quickstart's model in the visitor's browser: http://localhost:8000 (PORT=8080 for another port).
demo: $(INSTALLED) runs/quickstart/results.json
	$(RUN) -m pip install --quiet -c $(PINNED) -e '.[page]'
	$(RUN) -m bert4rec_jax.export --workdir runs/quickstart --format page --histories experiments/article_histories.json --out runs/site
	@echo "open http://localhost:$(PORT) in a browser; stop with Ctrl-C"
	$(RUN) -m http.server --directory runs/site --bind 127.0.0.1 $(PORT)

runs/quickstart/results.json: $(INSTALLED)
	$(RUN) -m bert4rec_jax.main --config configs/quickstart.py --workdir runs/quickstart

# One process a core, up to four (tests/conftest.py); which has no tests left takes some from another.
test: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m pytest -n auto --dist=worksteal

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m slow

# BENCH="--ml_1m FOLDER --beauty FOLDER" measures on the real data sets instead of data made up in their shape.
bench: $(INSTALLED)
	$(RUN) benchmarks/speed.py --out runs/bench $(BENCH)
	$(RUN) benchmarks/step.py --out runs/bench
	$(RUN) benchmarks/catalogue.py --out runs/bench
	$(RUN) benchmarks/recommend.py --out runs/bench
	$(RUN) benchmarks/data_pipeline.py --out runs/bench/ml-25m-shaped

# The site, in build/site: warnings are errors, links and anchors are checked, the notebooks run and show what is kept.
docs: $(VENV)/.docs
	$(RUN) docs/_extensions/notebooks.py docs/notebooks/*.ipynb
	$(RUN) -m sphinx -W --keep-going -q -b html docs build/site
	$(RUN) docs/_extensions/check_links.py build/site
	@echo "the site is in build/site; to see it: $(RUN) -m http.server --directory build/site"

# The wheel, tried in an empty environment away from the checkout.
wheel:
	PYTHON=$(PYTHON) tests/packaging/try_wheel.sh build/dist

$(INSTALLED): pyproject.toml $(wildcard constraints*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=python3.12" >&2; exit 2; }
	@# An environment that is there keeps its Python unless another one is named.
	{ [ "$(origin PYTHON)" = file ] && [ -x $(RUN) ]; } || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c $(PINNED) -e '.[test]'
	@touch $@

$(VENV)/.docs: $(INSTALLED)
	$(RUN) -m pip install --quiet -c $(PINNED) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) runs build
