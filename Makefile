# Every target makes .venv when it is missing. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-gpu test-extras test-browser lint format bench docs dist keep-release clean

demo: $(VENV)/.installed
	$(BIN)/difftool train --seed 0 --out runs/demo --overwrite
	$(BIN)/difftool sample runs/demo --overwrite --out demo/samples.png --out demo/trajectory.gif
	$(BIN)/difftool noise --dataset swiss-roll --overwrite --out demo/noise.png
	$(BIN)/difftool inspect-schedule linear cosine --overwrite --out demo/schedules.png
	@echo "Look at demo/samples.png, demo/trajectory.gif, demo/noise.png and demo/schedules.png."
	@echo "Then: source $(VENV)/bin/activate; difftool sample --sampler dpmpp-2m --spacing log-snr --steps 10"

# Each core takes a row of neighbouring tests, so that what a file prepares is prepared once, and at the end helps others.
PYTEST_ON_ALL_CORES := -m pytest -n auto --dist worksteal

# All tests that are not marked slow: some five minutes on two cores.
test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST_ON_ALL_CORES) -m "not slow and not gpu and not browser"

# All tests: some twenty minutes on two cores.
test-all: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST_ON_ALL_CORES) -m "not browser"

# The tests that need a GPU; without one they are skipped, and say so. With WHEELS=wheels everything but torch is taken
# from that folder, without network: `python tests/wheels.py wheels` packs it elsewhere.
GPU_TESTS := -m pytest -m gpu -rs tests/test_gpu.py
ifdef WHEELS
test-gpu:
	$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $(VENV)-gpu $(WHEELS)/*.whl
	PYTHONPATH=$(CURDIR)/$(VENV)-gpu $(PYTHON) $(GPU_TESTS)
else
test-gpu: $(VENV)/.installed-test
	$(BIN)/python $(GPU_TESTS)
endif

# The tests that use an optional library for real, in an environment that has all extras of pyproject.toml. A test that
# is skipped there fails.
test-extras: $(VENV)-extras/.installed
	DIFFTOOL_SKIPPED=fail $(VENV)-extras/bin/python -m pytest -m "extras and not gpu" $(PYTEST)

# The tests that show pages in a browser, those of reports and those of the site: Chromium and its driver, of Debian's
# packages chromium and chromium-driver. SCREENSHOTS=folder keeps pictures of the pages.
test-browser: $(VENV)/.installed-browser docs
	DIFFTOOL_SKIPPED=fail DIFFTOOL_SCREENSHOTS=$(SCREENSHOTS) $(BIN)/python -m pytest -m browser tests/test_browser.py tests/test_website_browser.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Some twenty minutes on two cores; best on a machine that does nothing else.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks --docs

# The documentation site, in site/. A warning, a link that leads nowhere, or a page that no index names is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m website

# What is published: the source distribution, and the wheel that is built from it, which equals that of the checkout.
dist: $(VENV)/.installed-dist
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m build --no-isolation --wheel --outdir dist/from-checkout .
	cmp dist/*.whl dist/from-checkout/*.whl && rm -r dist/from-checkout
	$(BIN)/python -m twine check --strict dist/*

# Once a release: keeps a tiny run of this version, which later versions must open; see docs/compatibility.md.
keep-release: $(VENV)/.installed-test
	$(BIN)/python tests/test_compatibility.py

clean:
	rm -rf $(VENV) $(VENV)-extras demo runs/demo dist site build/site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "difftool needs Python 3.11 or newer; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,lint]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-browser: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,report,test-browser]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dist: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dist]"
	touch $@ $(VENV)/.installed

EXTRAS := import tomllib; names = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(name for name in names if name not in ("bench", "dist", "docs", "lint", "test-browser", "test-gpu")), sep=",")

$(VENV)-extras/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m venv $(VENV)-extras
	$(VENV)-extras/bin/python -m pip install --quiet -c constraints.txt -e ".[$$($(BIN)/python -c '$(EXTRAS)')]"
	# torch-fidelity brings it for networks that no test uses, and what is compiled for another torch breaks diffusers
	$(VENV)-extras/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@
