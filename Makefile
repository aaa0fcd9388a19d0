# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up what they need, once.
# `make setup-inference` is for matting images alone; `make setup` after it adds the rest.

PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.ready
# Page of an index with CPU builds of torch, for machines without a GPU: PyTorch's "Get Started" page names it.
TORCH_INDEX ?=
PIP_INSTALL = $(PY) -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
TEST_JOBS ?= 2
# One thread a worker: two workers that each start a thread per core slow each other down. numba counts cores anew.
# Compiled test modules are kept, whatever the environment says: pytest takes 15 seconds per worker to rewrite them.
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n $(TEST_JOBS) --dist worksteal
ROOMS := $(wildcard modeling data evaluation engine inference runtime tools main.py preprocess.py)

.PHONY: setup setup-inference demo test test-slow lint bench soak soak-data soak-images soak-busy soak-serve soak-clip

setup: $(STAMP)

setup-inference: .venv/.ready-inference

define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
endef

.venv/.ready-inference: requirements-inference.txt
	$(make_venv)
	$(PIP_INSTALL) -r $<
	touch $@

$(STAMP): $(wildcard requirements*.txt) tools/runs/install_detectron2.py
	$(make_venv)
	$(PIP_INSTALL) -r requirements.txt -r requirements-serve.txt -r requirements-dev.txt
	$(PY) tools/runs/install_detectron2.py
	touch $@

demo: setup
	$(PY) tools/runs/demo.py

test: setup
	$(PYTEST) -m "not slow"

# Exit status 5 says that there are no slow tests at all; the counts then say so too.
test-slow: setup
	$(PYTEST) -m slow || test $$? -eq 5

lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy $(ROOMS)

bench: setup
	$(PY) tools/benchmark.py train-step
	$(PY) tools/benchmark.py metrics
	$(PY) tools/benchmark.py infer

# Trainings whose processes are killed 40 times, compared with one that is left alone: minutes.
soak: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.soak_training

# 10 000 samples by one long life of workers and by many that end at random: minutes.
soak-data: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.soak_data

# 48 layouts of image files, each damaged 500 times: minutes.
soak-images: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz_images

# The demo's training alone and beside one and two busy processes: minutes, on a machine where nothing else runs.
soak-busy: setup
	$(PY) -m tests.soak_busy

# 400 requests of 8 clients to the service, one in twenty broken: minutes.
soak-serve: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.soak_serve

# A clip of 600 frames of 1920 x 1080: memory, and a run that is killed and resumed: an hour on two cores.
soak-clip: setup
	OMP_NUM_THREADS=1 $(PY) -m tests.soak_clip
