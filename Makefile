# dictlearn.h: everything is built and checked from here. GNU make and a C compiler (gcc or clang) are all that is
# needed; the targets that speak to PyTorch make their own environment in build/venv. `make help` lists the targets.

CC      ?= cc
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
# Threads that wait sleep: while another program has the cores, spinning at each barrier costs ten times the work.
export OMP_WAIT_POLICY ?= passive
COMPILE  = $(CC) -std=c99 $(CFLAGS) $(WARN) $(OPENMP) -I. -Iexamples
HARD     = -std=c99 -O1 -g $(WARN) -I. -Iexamples -pthread -fno-sanitize-recover=all

PROGRAMS := $(BUILD)/dictlearn $(patsubst examples/%.c,$(BUILD)/%,$(wildcard examples/[0-9][0-9]_*.c))
TESTS    := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c)) $(BUILD)/fuzz_replay
SCRIPTS  := $(filter-out tests/test_of_tests.sh,$(wildcard tests/test_*.sh))
CHECKED  := $(patsubst tests/%.c,$(BUILD)/san/%,$(wildcard tests/test_*.c))
SAN      := $(CHECKED) $(BUILD)/san/fuzz_replay
UNDER_A   = $(CHECKED:$(BUILD)/san/%=$(BUILD)/$(1)/%)
KERNEL_TESTS ?= test_core test_trainer test_golden
CHECKERS := $(wildcard tests/interop.py tests/hf_check.py tests/tokenizer_check.py tests/twin.py)
PACKAGES := torch==2.13.0 numpy==2.4.6 scipy==1.17.1 safetensors==0.8.0 transformers==5.23.0 tokenizers==0.23.3
PEERS    := torch==2.13.0 numpy==2.4.6 scipy-openblas64==0.3.34.481.3 threadpoolctl==3.8.0 \
            transformers==5.23.0
HEADERS  := dictlearn.h $(wildcard examples/*/*.h)
FUZZERS  := tests/fuzz/fuzz.c $(wildcard tests/fuzz/*.h tests/*.h) $(HEADERS)

TOOLS     = CC='$(CC)' CFLAGS='$(CFLAGS)' OPENMP='$(OPENMP)' BUILD='$(BUILD)'

.PHONY: all demo test kill test-of-tests mutants interop twin san tsan msan valgrind coverage analyze matrix lint \
        doctest venv bench bench-peers bench-check bench-readme help clean format fuzz fuzz-afl fuzz-merge fuzz-replay
.DELETE_ON_ERROR:

all: $(PROGRAMS) ## the program build/dictlearn and the examples

$(BUILD)/dictlearn: examples/program/dictlearn.c $(HEADERS)
	$(COMPILE) $< -o $@ -lm

$(BUILD)/%: examples/%.c $(HEADERS)
	$(COMPILE) $< -o $@ -lm

$(BUILD)/test_%: tests/test_%.c $(wildcard tests/*.h) $(HEADERS)
	$(COMPILE) -pthread $< -o $@ -lm

$(BUILD)/test_program $(BUILD)/san/test_program: examples/program/dictlearn.c # the program within the test

$(BUILD)/kernel_sets $(BUILD)/rows: $(BUILD)/%: tests/%.c dictlearn.h
	$(COMPILE) $< -o $@ -lm

demo: all ## a dictionary from a language model, with its table (MODEL= TEXT= SITE= LAYER= EXPANSION= ROWS=)
	@MODEL='$(MODEL)' TEXT='$(TEXT)' SITE='$(SITE)' LAYER='$(LAYER)' EXPANSION='$(EXPANSION)' ROWS='$(ROWS)' \
	  sh examples/demo.sh

test: all $(TESTS) $(BUILD)/kernel_sets $(BUILD)/rows $(BUILD)/bench ## every test; closes with `N passed, N failed`
	@$(TOOLS) KERNEL_SETS="$$($(BUILD)/kernel_sets)" KERNEL_TESTS='$(KERNEL_TESTS)' \
	  sh tests/run.sh $(BUILD) $(TESTS) $(SCRIPTS)

test-%: all $(BUILD)/test_% ## one C test by name, as `make test-buffer`
	$(BUILD)/test_$*

kill: all $(BUILD)/rows ## kills KILLS (20) runs at random moments: each goes on with the same bits
	@$(TOOLS) KILLS=$(or $(KILLS),20) sh tests/run.sh $(BUILD) tests/test_kill.sh

test-of-tests: ## plants faults in a copy of the header; each must be caught
	@$(TOOLS) sh tests/test_of_tests.sh $(BUILD)

mutants: $(BUILD)/kernel_sets ## changes a copy of the header at random, MUTANTS (200) times: the share that is noticed
	@$(TOOLS) KERNEL_SETS="$$($(BUILD)/kernel_sets)" MUTANTS='$(MUTANTS)' SEED='$(SEED)' ONLY='$(ONLY)' \
	  python3 tests/mutants.py $(BUILD)

venv: $(BUILD)/venv/ready ## build/venv with PyTorch and the libraries that we compare with

$(BUILD)/venv/ready:
	python3 -m venv $(BUILD)/venv
	$(BUILD)/venv/bin/pip install --quiet --disable-pip-version-check $(PACKAGES)
	@touch $@

ifeq ($(PYTHON),$(BUILD)/venv/bin/python)
VENV := $(BUILD)/venv/ready
endif

interop: all $(VENV) ## files and numbers against PyTorch, SciPy, safetensors, transformers, tokenizers
	@PYTHON='$(PYTHON)' sh tests/run.sh $(BUILD) $(CHECKERS)

twin: all $(VENV) ## the program and a PyTorch twin of the reference's loop on the same rows, two tables side by side
	$(PYTHON) tests/twin.py $(BUILD)

$(BUILD)/san/test_%: tests/test_%.c $(wildcard tests/*.h) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(HARD) -fsanitize=address,undefined $< -o $@ -lm

$(BUILD)/san/fuzz_replay: tests/fuzz/replay.c $(FUZZERS)
	@mkdir -p $(@D)
	$(CC) $(HARD) -fsanitize=address,undefined $< -o $@ -lm

san: $(SAN) ## the C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@ASAN_OPTIONS=allocator_may_return_null=1 sh tests/run.sh $(BUILD) $(SAN)

$(BUILD)/fuzz/fuzz: $(FUZZERS)
	@mkdir -p $(@D)
	clang $(HARD) -fsanitize=fuzzer,address,undefined $< -o $@ -lm

$(BUILD)/fuzz/fuzz-afl: $(FUZZERS)
	@mkdir -p $(@D)
	AFL_USE_ASAN=1 AFL_USE_UBSAN=1 afl-clang-fast $(HARD) -fsanitize=fuzzer $< -o $@ -lm

$(BUILD)/fuzz_replay: tests/fuzz/replay.c $(FUZZERS)
	$(COMPILE) $< -o $@ -lm

fuzz: $(BUILD)/fuzz/fuzz ## hostile files to every reader: FUZZ_SECONDS= each, FUZZ_TARGET= picks (clang, libclang-rt)
	FUZZ_SECONDS='$(FUZZ_SECONDS)' sh tests/fuzz/fuzz.sh fuzz $(BUILD) $(FUZZ_TARGET)

fuzz-afl: $(BUILD)/fuzz/fuzz-afl ## the same with AFL++, the pickle machine unless FUZZ_TARGET= names another
	FUZZ_SECONDS='$(FUZZ_SECONDS)' sh tests/fuzz/fuzz.sh afl $(BUILD) $(or $(FUZZ_TARGET),pickle)

fuzz-merge: $(BUILD)/fuzz/fuzz ## what the fuzzers found becomes the committed inputs, the least of it that does
	sh tests/fuzz/fuzz.sh merge $(BUILD) $(FUZZ_TARGET)

fuzz-replay: $(BUILD)/fuzz_replay ## the committed inputs without a fuzzer (FUZZ_TARGET= FUZZ_FILES=: these files)
	$(BUILD)/fuzz_replay $(FUZZ_TARGET) $(FUZZ_FILES)

# The sanitizers that clang alone has, or has with OpenMP: archer tells ThreadSanitizer what OpenMP's barriers order.
$(BUILD)/tsan/test_%: tests/test_%.c $(wildcard tests/*.h) $(HEADERS)
	@mkdir -p $(@D)
	clang $(HARD) -fopenmp -fsanitize=thread $< -o $@ -lm

$(BUILD)/msan/test_%: tests/test_%.c $(wildcard tests/*.h) $(HEADERS)
	@mkdir -p $(@D)
	clang $(HARD) -fsanitize=memory -fsanitize-memory-track-origins $< -o $@ -lm

$(BUILD)/valgrind/test_%: tests/test_%.c $(wildcard tests/*.h) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(HARD) -DDICTLEARN_SIMD=0 -DTEST_BRIEF $< -o $@ -lm

# Every function is kept, also where a test does not use it, so that all programs have the same lines and branches.
$(BUILD)/coverage/test_%: tests/test_%.c $(wildcard tests/*.h) $(HEADERS)
	@mkdir -p $(@D)
	@rm -f $@.gcda
	gcc -std=c99 -O0 -g $(WARN) -I. -Iexamples -pthread -DNDEBUG --coverage -fkeep-static-functions $< -o $@ -lm

coverage: $(call UNDER_A,coverage) $(BUILD)/kernel_sets ## what the C tests run, by line and branch
	@KERNEL_SETS="$$($(BUILD)/kernel_sets)" KERNEL_TESTS='$(KERNEL_TESTS)' sh tests/run.sh $(BUILD) \
	  $(filter $(BUILD)/coverage/%,$^)
	@python3 tests/coverage.py $(BUILD) dictlearn.h

tsan: $(call UNDER_A,tsan) ## the C tests on three threads under ThreadSanitizer
	@OMP_NUM_THREADS=3 OMP_TOOL_LIBRARIES="$$(clang -print-file-name=libarcher.so)" \
	  TSAN_OPTIONS='allocator_may_return_null=1 ignore_noninstrumented_modules=1' sh tests/run.sh $(BUILD) $^

msan: $(call UNDER_A,msan) ## the C tests under MemorySanitizer (clang), with every set of kernels
	@MSAN_OPTIONS=allocator_may_return_null=1 sh tests/run.sh $(BUILD) $^

valgrind: $(call UNDER_A,valgrind) ## the C tests with the scalar kernels under valgrind (takes long)
	@UNDER='valgrind --quiet --error-exitcode=99 --leak-check=full' sh tests/run.sh $(BUILD) $^

doctest: all ## compiles and runs every example of README.md and of the manual
	@$(TOOLS) sh tests/run.sh $(BUILD) tests/test_doc.sh

$(BUILD)/bench: bench/bench.c $(wildcard bench/*.h) $(HEADERS)
	$(COMPILE) $< -o $@ -lm

bench: $(BUILD)/bench ## speed, as ratios: writes bench/results; with the peers where they are set up (BENCH=--cpu-time)
	python3 bench/run.py $(BUILD) --peers $(BUILD)/peers/bin/python $(BENCH)

bench-peers: $(BUILD)/peers/ready ## build/peers with PyTorch, NumPy and OpenBLAS, to be measured in turns with ours

$(BUILD)/peers/ready:
	python3 -m venv $(BUILD)/peers
	$(BUILD)/peers/bin/pip install --quiet --disable-pip-version-check $(PEERS)
	@touch $@

bench-check: $(BUILD)/bench ## fails where a ratio is more than 25 % worse than bench/results has it for this machine
	python3 bench/run.py $(BUILD) --check $(BENCH)

bench-readme: ## writes the table of README.md from bench/results
	python3 bench/run.py --readme

lint: ## style and hygiene: format, columns, function length, contents page, symbols, macros
	@$(TOOLS) sh tests/lint.sh $(BUILD)

analyze: ## the static analysers of clang and gcc, and cppcheck, without a finding
	@$(TOOLS) sh tests/analyze.sh $(BUILD)

matrix: ## each compiler, language, option and machine at hand, without a warning (MATRIX=short: a slice of it)
	@$(TOOLS) sh tests/matrix.sh $(BUILD)

format: ## rewrites the C files as .clang-format says
	clang-format -i dictlearn.h examples/*.c examples/*/*.[ch] tests/*.[ch] tests/fuzz/*.[ch] bench/*.[ch]

clean: ## removes build/ but for the virtual environments
	rm -rf $(filter-out $(BUILD)/venv $(BUILD)/peers,$(wildcard $(BUILD)/*))

help: ## this list
	@sed -n 's/^\([a-z%-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  make %-15s %s\n", $$1, $$2 }'
