# The commands: `make quickstart` (train, compare, recommend), `make demo` (look at it in a browser) and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

PORT ?= 8000

.PHONY: quickstart demo test test-slow bench clean

quickstart: $(INSTALLED)
	$(RUN) -m bert4rec_jax.main --config configs/quickstart.py --workdir runs/quickstart

# The quickstart's model in the visitor's browser: http://localhost:8000 (PORT=8080 for another port).
demo: $(INSTALLED) runs/quickstart/results.json
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[page]'
	$(RUN) -m bert4rec_jax.export --workdir runs/quickstart --format page --histories experiments/article_histories.json --out runs/site
	@echo "open http://localhost:$(PORT) in a browser; stop with Ctrl-C"
	$(RUN) -m http.server --directory runs/site --bind 127.0.0.1 $(PORT)

runs/quickstart/results.json: $(INSTALLED)
	$(RUN) -m bert4rec_jax.main --config configs/quickstart.py --workdir runs/quickstart

test: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m pytest

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m slow

# BENCH="--ml_1m FOLDER --beauty FOLDER" measures on the real data sets instead of data made up in their shape.
bench: $(INSTALLED)
	$(RUN) benchmarks/speed.py --out runs/bench $(BENCH)
	$(RUN) benchmarks/step.py --out runs/bench
	$(RUN) benchmarks/catalogue.py --out runs/bench
	$(RUN) benchmarks/data_pipeline.py --out runs/bench/ml-25m-shaped

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) runs
