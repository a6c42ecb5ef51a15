# Every target sets up what it needs in .venv; PYTHON names the interpreter to build it with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: audit sbom lock matrix demo demo-dense mm test lint parity docs timm-suite natten-peer bench clean faults fuzz \
  browser app-picture gpu on-gpu gpu-tests gpu-ops gpu-ops-forward gpu-ops-backward gpu-layers gpu-blocks gpu-models \
  gpu-models-backward gpu-resolution gpu-compiled gpu-models-compiled gpu-neighborhood-compiled gpu-memcheck

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "make: $(PYTHON) is no Python 3.10 to 3.13; name one with PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
	  { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } 2>/dev/null || \
	  { rm -rf $(VENV); [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y python3-venv && \
	    $(PYTHON) -m venv $(VENV); } >/dev/null 2>&1 || \
	  { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; apt-get install python3-venv"; exit 2; }

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	@touch $@

# Their dependencies would turn numpy and OpenCV back: the extra lists those that matter (docs/dense.md).
$(VENV)/.installed-mm: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[mm]"
	$(BIN)/python -m pip install --quiet --no-deps onedl-mmdetection==3.5.1 onedl-mmsegmentation==1.4.2 imaug==0.4.3
	@touch $@

# For the tests only.
$(VENV)/.installed-mmpretrain: $(VENV)/.installed-mm
	$(BIN)/python -m pip install --quiet --no-deps onedl-mmpretrain==1.3.6
	$(BIN)/python -m pip install --quiet einops mat4py modelindex importlib-metadata
	@touch $@

mm: $(VENV)/.installed-mm

demo: $(VENV)/.installed-train
	$(BIN)/attnzoo demo

demo-dense: $(VENV)/.installed-train $(VENV)/.installed-mm
	$(BIN)/attnzoo demo-dense

# For the tests of attnzoo app; without it they are skipped.
browser:
	@command -v chromium >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y chromium; } >/dev/null 2>&1 || \
	  echo "make: no browser, the tests of the page are skipped; apt-get install chromium"

app-picture: browser $(VENV)/.installed-dev
	$(BIN)/python tests/app/picture.py docs/app.png

# Triton interprets or compiles, once a process: the fused kernels' tests run by themselves. Those are not traced for
# coverage, nor are the tests whose time goes to PyTorch's compilers.
test: browser $(VENV)/.installed-dev $(VENV)/.installed-mm $(VENV)/.installed-mmpretrain
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interp -n $(JOBS)
	$(BIN)/python -m pytest tests/aot
	$(BIN)/python -m pytest -m compiles -n $(JOBS)
	$(BIN)/python -m pytest -m "not compiles" -n $(JOBS) --cov --cov-report=json:build/coverage.json
	@$(BIN)/python tests/coverage_table.py build/coverage.json

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The relative error of every model against its fixtures, for docs/models.md.
parity: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/zoo/test_parity.py --parity-results results/parity.json

# What goes wrong around models, data and disks, provoked for real; writes docs/faults.md.
faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/faults --ignore tests/faults/test_table.py --faults-results results/faults.json
	$(BIN)/python tests/fault_table.py

# New cases for FUZZ_SECONDS, shared by the targets of tests/fuzz; make test runs the same few each time.
FUZZ_SECONDS ?= 3600
fuzz: $(VENV)/.installed-dev
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz --timeout 0 --fuzz-results results/fuzz.json

# Known vulnerabilities of the locked packages; status 2 where the advisories cannot be had.
audit: $(VENV)/.installed-dev
	@$(BIN)/python tests/audit.py

# The software bill of materials of the environment that is built here.
sbom: $(VENV)/.installed-dev
	@mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file build/sbom.cdx.json $(BIN)/python

# Renews the locked development environment (make audit, SECURITY.md); downloads a few gigabytes.
lock: $(BIN)/python
	PIP_CONFIG_FILE=/dev/null $(BIN)/python -m pip lock --quiet --only-binary :all: \
	  --index-url https://pypi.org/simple --output pylock.dev.toml ".[dev]"

# Every supported Python that is here, with the oldest and the newest torch and timm; CELLS narrows it.
matrix: $(BIN)/python
	@$(BIN)/python tests/matrix.py $(CELLS)

docs: $(VENV)/.installed-dev
	$(BIN)/attnzoo table --output docs/models.md
	$(BIN)/attnzoo table --readme README.md
	$(BIN)/attnzoo table --configs configs/README.md
	$(BIN)/attnzoo bench docs --output docs/benchmarks.md

# timm's own model tests, from its source distribution, over the zoo's names; PATTERN narrows them.
PATTERN ?= *
timm-suite: $(VENV)/.installed-dev
	$(BIN)/python tests/timm_suite/run.py "$(PATTERN)" -n $(JOBS)

# On a GPU: the interpreter's cases natively, every figure of docs/benchmarks.md that needs one, and the cases once more
# under compute-sanitizer. A part that fails does not keep the others from running, and each can be had by itself, on a
# machine with an environment of its own by GPU_PYTHON=python3. Most of the time goes to compiling, on GPU_JOBS processes.
GPU_JOBS ?= 8
GPU_PYTHON ?= $(BIN)/python
GPU_MODELS := biformer_tiny dinat_tiny overlock_tiny mavit_tiny
BENCH_GPU := --device cuda --dtype bfloat16
gpu: $(VENV)/.installed-dev
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then $(MAKE) --keep-going on-gpu; \
	else echo "make gpu: no GPU here, nothing to run"; fi

on-gpu: gpu-tests gpu-ops gpu-models gpu-compiled gpu-memcheck

gpu-tests:
	$(GPU_PYTHON) -m pytest tests/interp -n $(GPU_JOBS)

gpu-ops: gpu-ops-forward gpu-ops-backward gpu-layers gpu-blocks
gpu-ops-forward:
	$(GPU_PYTHON) -m attnzoo.tools.main bench ops $(BENCH_GPU) --batch 128 --json results/gpu-ops.json
gpu-ops-backward:
	$(GPU_PYTHON) -m attnzoo.tools.main bench ops $(BENCH_GPU) --batch 128 --backward --json results/gpu-ops-backward.json
gpu-layers:
	$(GPU_PYTHON) -m attnzoo.tools.main bench layers $(BENCH_GPU) --batch 128 --json results/gpu-layers.json
gpu-blocks:
	$(GPU_PYTHON) -m attnzoo.tools.main bench layers --block $(BENCH_GPU) --batch 128 --json results/gpu-blocks.json

gpu-models: gpu-models-backward gpu-resolution
gpu-models-backward:
	$(GPU_PYTHON) -m attnzoo.tools.main bench models $(GPU_MODELS) $(BENCH_GPU) --batch 32 --backend auto,torch --backward \
	  --json results/gpu-models-backward.json
gpu-resolution:
	$(GPU_PYTHON) -m attnzoo.tools.main bench models $(GPU_MODELS) $(BENCH_GPU) --batch 2 --img-size 224,512,1024,2048 \
	  --json results/gpu-resolution.json

gpu-compiled: gpu-models-compiled gpu-neighborhood-compiled
gpu-models-compiled:
	$(GPU_PYTHON) -m attnzoo.tools.main bench models $(GPU_MODELS) $(BENCH_GPU) --batch 128 --backend auto,torch --compile \
	  --json results/gpu-models.json
gpu-neighborhood-compiled:
	$(GPU_PYTHON) -m attnzoo.tools.main bench ops neighborhood_attention $(BENCH_GPU) --batch 128 --compile \
	  --json results/gpu-neighborhood-compiled.json

# Without PyTorch's cache every tensor is an allocation of its own, whose bounds the sanitizer sees; each process says in a
# file of its own what it found.
gpu-memcheck:
	@command -v compute-sanitizer >/dev/null || \
	  { echo "make gpu-memcheck: compute-sanitizer is not on PATH (the CUDA toolkit has it); memory was not checked"; exit 1; }
	rm -rf build/memcheck && mkdir -p build/memcheck
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --target-processes all --error-exitcode 1 \
	  --log-file build/memcheck/%p.txt $(GPU_PYTHON) -m pytest tests/interp -q --timeout 0 -n $(GPU_JOBS) || \
	  { echo "make gpu-memcheck: build/memcheck has what each process found"; exit 1; }
	@cat build/memcheck/*.txt | grep -q "ERROR SUMMARY: 0 errors" && \
	  ! grep -H "ERROR SUMMARY" build/memcheck/*.txt | grep -v "SUMMARY: 0 errors"

# NATTEN 0.14.6's own CPU kernels, beside which PYTHONPATH=build/natten attnzoo bench ops neighborhood_attention times ours.
natten-peer: $(VENV)/.installed-dev
	$(BIN)/python tests/natten_peer/build.py
	$(BIN)/python tests/natten_peer/build.py --serial

bench: $(VENV)/.installed-dev
	$(BIN)/attnzoo bench ops

clean:
	rm -rf $(VENV) build *.egg-info out
