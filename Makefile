# make demo   set up and run the main job on a small real corpus
# make test   set up and run every check
# make docs   set up and build the documentation's site in site/
# All need Python 3.11 or newer and nothing else; PYTHON=python3.12 chooses another one.

PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: demo test docs clean

demo: $(INSTALLED)
	$(PY) -m stackbert demo --out demo
	@echo "The command stackbert is in .venv/bin: . .venv/bin/activate"

# One thread a test process: the processes share the cores instead of fighting for them.
test: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest -n auto --dist worksteal

docs: $(INSTALLED)
	$(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# The stamp is touched last, so an interrupted installation is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "StackBERT needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf .venv demo site
