# Each target sets up .venv by itself (Python 3.11, from requirements.lock) and says first how long it takes.
#   make run [PROFILE=tiny] [ONLY="03 04"] [RUN_NAME=mine] [FORCE=1] [DRY_RUN=1]
PROFILE ?= tiny
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
# a new lock makes a new stamp, so that an old environment is brought up to date, and a current one costs no time
# make bench measures on the tiny policy where make run has made it
POLICY := $(or $(wildcard results/tiny/02_policy/policy),embedded)
# a new file, which takes the old one's place when it is whole: all rows of the table are of one run
BENCH := results/bench/new.json
CRITIC := results/tiny/07_generative_prm/critique
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile
VLLM_STAMP := $(VLLM)/.ready-$(shell cat requirements-vllm.lock pyproject.toml | cksum | cut -d " " -f 1)
STAMP := $(VENV)/.ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d " " -f 1)
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile

.DEFAULT_GOAL := help
.PHONY: help setup run test slow lab bench base ablations sweep verify vllm-env test-vllm clean

help:
	@echo "make run    the notebooks of PROFILE ($(PROFILE)) -> results/; what is up to date is skipped"
	@echo "make run PROFILE=paper DRY_RUN=1  what a profile costs, and what is missing for it"
	@echo "make test   all tests but the slow ones"
	@echo "make slow   the slow tests"
	@echo "make lab    JupyterLab in the project's environment"
	@echo "make bench  throughput against raw baselines -> results/bench/"
	@echo "make ablations  the studies at full size, into results/ablations; reads what make run made"
	@echo "make sweep SWEEP=refined_temperature [JOBS=2]  a notebook at every point of params/sweeps/"
	@echo "make verify ONLY=05  runs notebooks again and compares all numbers with the results that are there"
	@echo "make vllm-env  an environment with vLLM and Ray, in $(VLLM); make test-vllm runs their tests there"
	@echo "make base   trains the embedded base model again from scratch"
	@echo "make clean  removes caches and build folders; results and .venv stay"

setup: $(STAMP)

$(STAMP):
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || \
	  { echo "Python 3.11 is needed, '$(PYTHON)' is another: call make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) from requirements.lock: 2 to 4 minutes, 3 GB (more with CUDA), once"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) -r requirements.lock
	@$(PY) -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true  # on all cores, where pip takes one; a file for another Python is no error
	@$(PIP) --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.ready-* && touch $@

run: $(STAMP)
	@echo "make run: profile tiny takes 16 to 25 minutes on 2 cores, by their speed, set-up included (5 GB); a second call takes seconds"
	@$(PY) -m mmprm_lib.runner --profile "$(PROFILE)" $(if $(ONLY),--only $(ONLY)) \
	  $(if $(RUN_NAME),--run-name "$(RUN_NAME)") $(if $(FORCE),--force) $(if $(DRY_RUN),--dry-run)

test: $(STAMP)
	@echo "make test: 5 to 10 minutes on 2 cores, by their speed, and 1 to 3 for the set-up"
	@$(PY) -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

slow: $(STAMP)
	@echo "make slow: 9 to 20 minutes on 2 cores, by their speed, and 1 to 3 for the set-up"
	@$(PY) -m pytest -m slow -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lab: $(STAMP)
	@echo "make lab: JupyterLab opens in a few seconds; stop it with Ctrl-C"
	@$(VENV)/bin/jupyter lab notebooks

bench: $(STAMP)
	@echo "make bench: 20 to 30 minutes on 2 cores, 8 of them for 100,000 simulated solutions; leave the machine alone"
	@rm -f $(BENCH)
	@$(PY) benchmarks/bench_generation.py --model $(POLICY) --out $(BENCH)
	@$(PY) benchmarks/bench_labeling.py --model $(POLICY) --out $(BENCH)
	@$(PY) benchmarks/bench_manners.py --model $(POLICY) --out $(BENCH)
	@$(PY) benchmarks/bench_scoring.py --out $(BENCH)
	@$(PY) benchmarks/bench_training.py --model $(POLICY) --out $(BENCH)
	@if [ -d $(CRITIC) ]; then $(PY) benchmarks/bench_critic.py --critic $(CRITIC) --out $(BENCH); \
	  else echo "no critic to measure: make run makes one"; fi
	@if [ -d $(VLLM) ]; then VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/bin/python benchmarks/bench_vllm.py --model $(POLICY) \
	  --out $(BENCH); else echo "no vLLM to measure: make vllm-env makes its environment"; fi
	@if [ -d $(VLLM) ] && [ -e /proc/driver/nvidia/version ]; then \
	  $(VLLM)/bin/python benchmarks/bench_chip.py --out $(BENCH); \
	  else echo "no chip to measure: it needs an NVIDIA GPU, and make vllm-env"; fi
	@mv $(BENCH) results/bench/bench.json
	@$(PY) benchmarks/common.py results/bench/bench.json

sweep: $(STAMP)
	@echo "make sweep: as long as its points together, as many at once as the machine bears; a killed sweep goes on"
	@$(PY) -m mmprm_lib.sweep "$(SWEEP)" $(if $(JOBS),--jobs $(JOBS))

verify: $(STAMP)
	@echo "make verify: runs ONLY again, as long as make run ONLY, and compares every number with the results that are there"
	@$(PY) -m mmprm_lib.verify --profile "$(PROFILE)" $(if $(ONLY),--only $(ONLY)) \
	  $(if $(RUN_NAME),--run-name "$(RUN_NAME)")

ablations: $(STAMP)
	@echo "make ablations: about 3 hours on 2 cores (12 GB); a killed run goes on where it stopped"
	@$(PY) -m mmprm_lib.runner --profile ablations $(if $(ONLY),--only $(ONLY)) $(if $(FORCE),--force)

vllm-env: $(VLLM_STAMP)

# On a CPU everything from a lock of its own, with the CPU build of torch where the index has it, else the usual one with
# all that it needs; on CUDA vLLM's own build and Ray beside the project's lock.
$(VLLM_STAMP):
	@echo "setting up $(VLLM) with vLLM and Ray: some minutes, 4 GB (more with CUDA), once"
	@"$(PYTHON)" -m venv $(VLLM)
	@if [ -e /proc/driver/nvidia/version ]; then \
	  $(VLLM_PIP) -r requirements.lock && $(VLLM_PIP) vllm==0.32.0 ray==2.60.0; \
	else \
	  torch="torch==$$(sed -n 's/^torch==//p' requirements-vllm.lock)+cpu"; \
	  $(VLLM_PIP) --no-deps "$$torch" 2>/dev/null || $(VLLM_PIP) "$${torch%+cpu}" || exit 1; \
	  $(VLLM_PIP) --no-deps -r requirements-vllm.lock && \
	  cp tests/vllm_env/torchvision_ops.py $$($(VLLM)/bin/python -c "import site; print(site.getsitepackages()[0])") && \
	  echo "import torchvision_ops" > $$($(VLLM)/bin/python -c "import site; print(site.getsitepackages()[0])")/torchvision_ops.pth; \
	fi
	@$(VLLM)/bin/python -m compileall -qq -j 0 -x '/tests?/' $(VLLM)/lib || true
	@$(VLLM_PIP) --no-deps --no-build-isolation --editable .
	@$(VLLM)/bin/python -c "import ray, torch, torchvision, vllm"
	@rm -f $(VLLM)/.ready-* && touch $@

test-vllm: $(VLLM_STAMP)
	@echo "make test-vllm: vLLM, in process and as a server, Ray, and all model families, really run; 20 to 40 minutes on 2 cores"
	@$(VLLM)/bin/python -m pytest tests/test_fleet.py tests/test_machines.py tests/test_engine.py tests/test_families.py \
	  tests/test_convert.py tests/test_chip.py tests/test_released.py \
	  tests/test_real_input.py::test_images_that_become_thousands_of_tokens_go_through_with_long_solutions

base: $(STAMP)
	@echo "make base: about an hour on 2 cores, minutes on a GPU; replaces mmprm_lib/assets/base"
	@$(PY) -m mmprm_lib.pretrain

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis results/smoke
	find mmprm_lib tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
