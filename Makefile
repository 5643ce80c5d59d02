# Everything runs in .venv of this checkout, which `make install` makes or brings up to date.

PYTHON ?= python3
SOURCE ?=
TEST_ARGS ?=
DEMO_ARGS ?=
SOAK_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SOURCES := CMakeLists.txt package.xml pyproject.toml setup.cfg setup.py \
  $(shell find config image_as_imu_ros launch msg scripts -type f -not -name '*.pyc')

.PHONY: install test demo lint config docs soak

install: $(VENV)/.package

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# ROS first: setup.py builds the messages when it finds rosidl in the environment.
$(VENV)/.ros: requirements-ros.txt | $(BIN)/python
	$(BIN)/pip install --requirement requirements-ros.txt
	touch $@

$(VENV)/.package: $(VENV)/.ros requirements-test.txt $(SOURCES)
	$(BIN)/pip install --no-build-isolation '.[onnxruntime,rooms,test]'
	touch $@

# The tests see the sources of the checkout, and the messages of the installed package.
test: install
	$(BIN)/python -m pytest $(TEST_ARGS)

demo: install
	$(BIN)/image-as-imu demo $(if $(SOURCE),--source '$(SOURCE)') $(DEMO_ARGS)

lint: install
	$(BIN)/ruff check .

# After a change of image_as_imu_ros/config.py.
config:
	$(BIN)/python -c 'from image_as_imu_ros.config import ros_yaml; print(ros_yaml(), end="")' \
	  > config/visual_imu.yaml

# After a change of the settings, the messages or docs/generate.py.
docs: install
	PYTHONPATH=. $(BIN)/python docs/generate.py

# The fault suite in full, half an hour or more; SOAK_ARGS='--frames 100000 --frame-minutes 10'.
soak: install
	PYTHONPATH=. OMP_NUM_THREADS=1 nice $(BIN)/python test/soak.py $(SOAK_ARGS)
