"""mutants.py BUILD: changes dictlearn.h at random, one small thing at a time; a test must notice each change.

MUTANTS (200) changes are drawn under SEED (1) from the lines that the compiler sees: an operator is swapped, a 0, 1 or
2 is off by one, a ! is gone, a call is not made, an error becomes another one or none. Each mutant is compiled without
optimisation with the programs that test its room, JOBS (2) at a time; it is killed when one of them fails, crashes or
takes too long. Those that live are tried again under the sanitizers. One that does not compile does not count, nor does
one of tests/mutants.txt, where those stand that change nothing that can be seen. ONLY, a regular expression, picks
mutants by what is said of them: ONLY='^json 4711'. Prints the survivors and the score; fails below the goal."""

import concurrent.futures, os, pathlib, queue, random, re, resource, shlex, shutil, subprocess, sys, time

GOAL = 0.85

# The programs that test each room, the likeliest to notice first.
PROGRAMS = {
    "platform": "core buffer", "base": "core arguments files load", "random": "core buffer golden",
    "numbers": "core files buffer", "threads": "core golden", "kernels": "core arguments",
    "context": "core arguments", "matrix": "core golden", "sparse": "core golden arguments screen",
    "dictionary": "core arguments golden load families", "screen": "screen golden",
    "candidates": "golden screen families", "select": "families screen formula", "decode": "core golden families",
    "encode": "core golden arguments families screen formula", "encoders": "formula layouts",
    "parts": "parts sets layouts", "sets": "sets layouts parts", "bytes": "files io load",
    "files": "files load io checkpoint buffer memory", "json": "files load memory",
    "archive": "files load io pickle checkpoint memory", "safetensors": "files load memory",
    "npy": "files load buffer", "inflate": "files load", "stream": "files io", "zip": "files pickle load memory",
    "pickle": "pickle load files memory", "torch": "pickle load files memory",
    "formats": "files load pickle", "writers": "load files io memory", "layouts": "layouts load families saving",
    "load": "load families layouts saving files memory", "source": "buffer arguments checkpoint memory",
    "buffer": "buffer arguments checkpoint memory", "training": "golden trainer traces",
    "optimiser": "golden trainer traces updates", "sums": "golden trainer", "loss": "golden trainer traces",
    "auxiliary": "golden auxiliary traces", "backward": "golden trainer traces memory", "recipes": "traces recipes",
    "settings": "trainer checkpoint arguments recipes", "resampling": "golden arguments trainer",
    "composite": "clt traces", "starts": "clt trainer", "trainer": "golden checkpoint arguments trainer memory",
    "checkpoint": "checkpoint golden trainer memory", "metrics": "metrics golden arguments",
    "splice": "metrics arguments", "kernel-bodies": "core golden screen",
}
SLOW = {"memory", "screen", "trainer"} # not under the sanitizers
# Below -O2 gcc leaves out vzeroupper without the second flag, and the kernels take ten times as long.
PLAIN = ["-O0", "-fexpensive-optimizations"]
SANITIZED = [*PLAIN, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

TOKEN = re.compile(r"""/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | ^[ ]*\#(?:\\\n|[^\n])* |
                       [A-Za-z_]\w* | \.?\d(?:[eEpP][+-]|[\w.])* | <<= | >>= | -> | [-+*/%&|^<>=!]= | && | \|\| |
                       << | >> | \+\+ | -- | [^\s\w]""", re.S | re.X | re.M)
SWAPS = {"<": ["<=", ">"], "<=": ["<", ">="], ">": [">=", "<"], ">=": [">", "<="], "==": ["!="], "!=": ["=="],
         "&&": ["||"], "||": ["&&"], "+": ["-"], "-": ["+"], "*": ["/"], "/": ["*"], "+=": ["-="], "-=": ["+="],
         "0": ["1"], "1": ["0", "2"], "2": ["1", "3"]}
CALL = re.compile(r"^ +(?!return\b|if\b|while\b|for\b|switch\b|DICTLEARN_ASSERT\b|DLRNI_ASSERT\b)"
                  r"[A-Za-z_][\w.>-]*\(.*\);$")
RETURN = re.compile(r"\breturn [^;]+;")


def seen_lines(text, compiler):
    """The numbers of the lines that the compiler at hand takes code from."""
    source = '#define DICTLEARN_IMPLEMENTATION\n#include "dictlearn.h"\n'
    said = subprocess.run([*compiler, "-E", "-x", "c", "-I.", "-"], input=source, text=True, capture_output=True,
                          check=True).stdout
    seen, inside, number = set(), False, 0
    for line in said.splitlines():
        mark = re.match(r'# (\d+) "([^"]*)"', line)
        if mark:
            inside, number = mark[2].endswith("dictlearn.h"), int(mark[1])
        else:
            if inside and line.strip():
                seen.add(number)
            number += 1
    return seen


def changes_of_tokens(text):
    """(offset, old, new) of each operator, small constant, ! and error."""
    errors = sorted(set(re.findall(r"\bDLRN_ERR_[A-Z]+\b", text)))
    for found in TOKEN.finditer(text):
        token, at, end = found[0], found.start(), found.end()
        if token == "!":
            yield at, token, ""
        elif token in errors:
            yield at, token, errors[(errors.index(token) + 1) % len(errors)]
        elif token in SWAPS and (token.isdigit() or text[at - 1] + text[end] == "  "): # not *p, not -x
            for new in SWAPS[token]:
                yield at, token, new


def changes_of_lines(lines):
    """(line index, new line) of each call that is a statement, and of what a function returns as its status."""
    gives_status = False
    for index, line in enumerate(lines):
        if re.match(r"[A-Za-z].*\(", line):
            gives_status = bool(re.search(r"\bdlrn_status \*?dlrn", line))
        if CALL.match(line):
            yield index, re.match(" *", line)[0] + ";"
        if gives_status and line.startswith(" ") and RETURN.search(line) and "return DLRN_OK;" not in line:
            yield index, RETURN.sub("return DLRN_OK;", line)


class Mutant:
    def __init__(self, room, function, index, old, new):
        self.room, self.function, self.index, self.old, self.new = room, function, index, old, new
        self.key = function, old.strip(), new.strip()

    def __str__(self):
        return f"{self.room} {self.index + 1} {self.function}\n     - {self.old.strip()}\n     + {self.new.strip()}"


def all_mutants(text, seen):
    lines = text.splitlines()
    starts, rooms, functions, room, function, at = [], [], [], "", "", 0
    for line in lines:
        banner = re.match(r"// >>([a-z-]+)$", line)
        head = re.match(r"\w.*?\b(dlrni?_\w+|DLRNI_K\(\w+\))\(", line)
        room, function = banner[1] if banner else room, head[1] if head else function
        starts.append(at)
        rooms.append(room)
        functions.append(function)
        at += len(line) + 1
    found, index = [], 0
    for at, old, new in changes_of_tokens(text):
        while index + 1 < len(lines) and starts[index + 1] <= at:
            index += 1
        column = at - starts[index]
        found.append((index, lines[index][:column] + new + lines[index][column + len(old):]))
    found += changes_of_lines(lines)
    return [Mutant(rooms[i], functions[i], i, lines[i], new) for i, new in sorted(set(found))
            if i + 1 in seen and rooms[i] in PROGRAMS and lines[i].startswith(" ") and "_ASSERT(" not in lines[i]]


class Place:
    """A folder to work in: a header, and links to what the tests look into."""
    def __init__(self, name):
        self.dir = build / "mutants" / name
        shutil.rmtree(self.dir, ignore_errors=True)
        (self.dir / "include").mkdir(parents=True)
        for link in ("tests", "examples"):
            (self.dir / link).symlink_to(root / link)

    def compiles(self, program, lines, flags):
        (self.dir / "include/dictlearn.h").write_text("\n".join(lines) + "\n")
        source = pathlib.Path(f"tests/test_{program}.c")
        if "#define DICTLEARN_IMPLEMENTATION" not in source.read_text():
            flags = [*flags, "-DDICTLEARN_IMPLEMENTATION"]
        return subprocess.run([*compiler, *flags, "-w", f"-I{self.dir}/include", "-I.", source, "-o",
                               self.dir / program, "-lm"], capture_output=True).returncode == 0

    def passes(self, program, seconds, kernels=None):
        def bounds(): # a mutant may loop for ever or write without end
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        chosen = {"DICTLEARN_KERNELS": kernels} if kernels else {}
        try:
            return subprocess.run([self.dir / program], cwd=self.dir, env={**environment, **chosen}, preexec_fn=bounds,
                                  timeout=seconds, capture_output=True).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def verdict(place, mutant):
    """What came of it: what killed it, None (it lives), or "" (it does not compile)."""
    changed = lines[:mutant.index] + [mutant.new] + lines[mutant.index + 1:]
    programs = PROGRAMS[mutant.room].split()
    for program in programs:
        if not place.compiles(program, changed, PLAIN):
            return ""
        for kernels in [None, *(kernel_sets if mutant.room == "kernel-bodies" and program not in SLOW else [])]:
            if not place.passes(program, limits[program], kernels):
                return f"{program} {kernels or ''}".strip()
    for program in programs:
        if program not in SLOW and place.compiles(program, changed, SANITIZED):
            if not place.passes(program, 5 * limits[program]):
                return f"{program} with sanitizers"
    return None


def outcome(mutant):
    place = places.get()
    try:
        return verdict(place, mutant)
    finally:
        places.put(place)


def equivalents(path):
    """{(function, old, new)} of tests/mutants.txt."""
    keys, function, old = set(), "", ""
    for line in path.read_text().splitlines():
        if line.startswith("@ "):
            function = line.split()[1]
        elif line.startswith("- "):
            old = line[2:]
        elif line.startswith("+ "):
            keys.add((function, old, line[2:]))
    return keys


root, build = pathlib.Path.cwd(), pathlib.Path(sys.argv[1]).resolve()
compiler = [*shlex.split(os.environ.get("CC", "cc")), "-std=c99"]
kernel_sets = os.environ.get("KERNEL_SETS", "").split()
environment = {**os.environ, "OMP_NUM_THREADS": "1", "ASAN_OPTIONS": "allocator_may_return_null=1",
               "DICTLEARN_SHARED": os.environ.get("DICTLEARN_SHARED", str(root / "../shared"))}
count, seed, jobs = (int(os.environ.get(name) or usual) for name, usual in (("MUTANTS", 200), ("SEED", 1), ("JOBS", 2)))
text = pathlib.Path("dictlearn.h").read_text()
lines = text.splitlines()

drawn = all_mutants(text, seen_lines(text, compiler))
known, total = equivalents(root / "tests/mutants.txt"), len(drawn)
stale = sorted(known - {mutant.key for mutant in drawn})
for function, old, new in stale:
    print(f"FAIL tests/mutants.txt: no such mutant of {function}:\n     - {old}\n     + {new}")
for room in set(PROGRAMS) - set(re.findall(r"^// >>([a-z-]+)$", text, re.M)):
    sys.exit(f"there is no room {room}")
random.Random(seed).shuffle(drawn)
drawn = [mutant for mutant in drawn if re.search(os.environ.get("ONLY") or ".", str(mutant))][:count]
same = [mutant for mutant in drawn if mutant.key in known]
drawn = [mutant for mutant in drawn if mutant.key not in known]
print(f"{len(drawn)} of {total} mutants, and {len(same)} that are known to change nothing")

base, limits, places = Place("base"), {}, queue.Queue()
for program in sorted({program for mutant in drawn for program in PROGRAMS[mutant.room].split()}):
    start = time.monotonic()
    if not base.compiles(program, lines, PLAIN) or not base.passes(program, 600):
        sys.exit(f"test_{program} fails with the header as it is")
    limits[program] = 10 + 5 * (time.monotonic() - start)
for job in range(jobs):
    places.put(Place(f"job{job}"))

killed = survived = 0
with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for mutant, killer in zip(drawn, pool.map(outcome, drawn)):
        killed += bool(killer)
        survived += killer is None
        if killer is None:
            print(f"LIVE {mutant}", flush=True)
        elif os.environ.get("VERBOSE"):
            print(f"{killer or 'does not compile'}: {mutant}", flush=True)
score = killed / ((killed + survived) or 1)
print(f"mutants: {killed} of {killed + survived} killed ({score:.0%}), goal {GOAL:.0%}")
sys.exit(score < GOAL or bool(stale))
