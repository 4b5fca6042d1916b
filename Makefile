# make demo   train, export, serve and classify, from a fresh clone
# make test   lint, types and tests, as CI runs them
# Both install what they need into .venv first; PYTHON=... chooses the interpreter for that.

PY := .venv/bin/python
INSTALLED := .venv/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test setup lock clean

demo: $(INSTALLED)
	@if [ -e models/gaternet ] && { [ "$$(ls models/gaternet)" != 1 ] || \
	  ! grep -qs '"workdir": "runs/demo"' models/gaternet/1/assets.extra/gaternet.json; }; then \
	  echo "make demo: models/gaternet must hold the demo's own version 1 and nothing else, since" \
	    "the demo makes it anew; move what is there: $$(ls models/gaternet | tr '\n' ' ')" >&2; \
	  exit 1; \
	fi
	@rm -rf runs/demo models/gaternet
	$(PY) -m train.main --dataset=digits --data_dir=data --workdir=runs/demo \
	  --backbone=resnet14 --gater=resnet8 --epochs=20 --batch_size=32 --validation=0
	$(PY) -m export.main --workdir=runs/demo --output_dir=models/gaternet --version=1
	$(PY) -m serving.demo --model_base_path=models/gaternet runs/demo/pictures

test: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -n 2

setup: $(INSTALLED)

# The interpreter is tried, not only looked for: a name on the PATH may be a stub, and Debian's
# python3 comes without ensurepip unless python3-venv is installed.
$(INSTALLED): requirements.lock setup.cfg pyproject.toml
	@test -x $(PY) || { \
	  for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	      2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make: Python 3.11, 3.12 or 3.13 with venv is required, and no" \
	      $(PYTHON) python3 python3.13 python3.12 python3.11 "on the PATH is one (python3 is" \
	      "$$(python3 --version 2>&1)); on Debian and Ubuntu install python3-venv, or give" \
	      "PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  $$found -m venv .venv; }
	@echo "installing the locked dependencies into .venv (once; about 2.7 GB, minutes)"
	@$(PY) -m pip install --quiet --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Renews the lock file; needs a network.
lock: $(INSTALLED)
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile setup.cfg --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-package gaternet-tf --upgrade \
	  --output-file requirements.lock

clean:
	rm -rf .venv build dist *.egg-info
