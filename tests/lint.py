"""lint.py CHECK: one of the checks of lint.sh that read dictlearn.h, and the prose, as text.

rooms      a comment that speaks of a room names one that exists
twins      no two private names are one letter apart
once       names that stand for themselves (types of numbers, kernel sets, files) are listed once
phrases    words that make a sentence hard to read are not used
comments   the share of the implementation's lines that are comments, which may not fall below a bound
libraries  the manual's table has each library of the code, with its classes
star       comments continue with three blanks, without a star
faults     the text of each planted fault stands once in its room or file, and its test is there

Says what it finds, a line each, and exits with 1 if that is anything."""

import bisect, functools, itertools, pathlib, re, sys

HEADER = "dictlearn.h"
PROSE = ["README.md", "SECURITY.md", "bench/README.md", HEADER]
COMMENTS = 0.20

# How a comment speaks of a room, and not of "room for 3 entries".
REFERENCE = re.compile(r"(?:\(|[Ss]ee |[Ii]n )rooms? ([a-z][a-z-]*)|>>([a-z][a-z-]*)|\brooms? ([a-z]+-[a-z-]+)")

# Names that differ by these alone say so by it; (a, b) of TWINS must differ by a letter.
TYPE = re.compile(r"(?<=_)(b?f|[iu]|int)\d+|\d+")
TWINS = set()

LISTED_ONCE = ["F32", "F16", "BF16", "F64", "I64", "U8", "scalar", "avx2", "avx512", "neon", "vnni", "amx",
               "ae.pt", "config.json", "cfg.json", "params.npz", "sae.safetensors", "sae_weights.safetensors"]

PHRASES = ["as they stand", "as it stands", "of what", "asked of", "by itself", "no bit", "what is not", "sees fit",
           "for want of", "is none that", "whatever .* are", "again and again", "in ellipses", "are asked",
           "nobody asks", "torn", "tilt"]

text = pathlib.Path(HEADER).read_text()
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
STRING = re.compile(r'"(?:\\.|[^"\\\n])*"')


@functools.lru_cache(maxsize=None)
def line_ends(source):
    return [found.start() for found in re.finditer("\n", source)]


def line_of(where, source=text):
    return bisect.bisect_left(line_ends(source), where) + 1


@functools.lru_cache(maxsize=None)
def comments():
    """(offset, text) of each comment; a string may hold what looks like one."""
    return [(found.start(), found[1]) for found in re.finditer(
        r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|(/\*.*?\*/|//[^\n]*)', text, re.S) if found[1]]


def code():
    """The text with comments and strings blanked, of the same length."""
    def blank(found):
        return re.sub(r"[^\n]", " ", found[0])
    return re.sub(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', blank, text, flags=re.S)


def rooms():
    known = set(re.findall(r"^// >>([a-z-]+)$", text, re.M)) | {"tag"}
    for at, comment in comments():
        for found in REFERENCE.finditer(comment):
            name = found[1] or found[2] or found[3]
            if name not in known:
                yield f"{HEADER}:{line_of(at + found.start())}: there is no room {name}"


def twins():
    """Names that meet when a letter of each is left out: one more, one less, or one other."""
    names = set(re.findall(r"\b(?:dlrni_[a-z0-9_]+|DLRNI_[A-Z0-9_]+)\b", code()))
    meeting = {}
    for name in names:
        prefix, rest = name[:6], name[6:]
        if len(rest) <= 4:
            continue
        for i in range(len(rest)):
            meeting.setdefault((prefix, rest[:i] + "*" + rest[i + 1:]), set()).add(name) # another letter
            meeting.setdefault((prefix, rest[:i] + rest[i + 1:]), set()).add(name) # one more
        meeting.setdefault((prefix, rest), set()).add(name)
    pairs = set()
    for (prefix, key), group in meeting.items():
        for a, b in itertools.combinations(sorted(group, key=lambda n: (len(n), n)), 2):
            other = "*" in key and len(a) == len(b)
            longer = "*" not in key and len(b) == len(a) + 1 and key == a[6:]
            if other or longer:
                pairs.add((a, b))
    for a, b in sorted(pairs):
        if TYPE.sub("", a) != TYPE.sub("", b) and (a, b) not in TWINS:
            yield f"{a} and {b} are one letter apart"


def once():
    start = text.index("#if defined(DICTLEARN_IMPLEMENTATION)")
    said = re.sub(r"/\*.*?\*/|^#error.*?$", lambda f: re.sub(r"[^\n]", " ", f[0]), text, flags=re.S | re.M)
    for name in LISTED_ONCE:
        places = re.finditer(r'(?<!\\)(?<!cpu_supports\()"%s"' % re.escape(name), said)
        at = [line_of(found.start()) for found in places if name[0].isupper() or found.start() > start]
        lists = [line for i, line in enumerate(at) if not i or line > at[i - 1] + 3] # a list's rows are neighbours
        if len(lists) > 1:
            yield f'{HEADER}: "{name}" stands in lines {", ".join(map(str, lists))}: expected one list'


def phrases():
    for name in PROSE:
        path = pathlib.Path(name)
        if not path.exists():
            continue
        source = path.read_text()
        parts = comments() if name == HEADER else [(0, source)]
        for at, part in parts:
            for phrase in PHRASES:
                words = phrase.replace(" ", r"\s+").replace(".*", r"\w+( \w+)?")
                for found in re.finditer(rf"\b{words}\b", part):
                    yield f"{name}:{line_of(at + found.start(), source)}: {' '.join(found[0].split())}"


def comment_share():
    """Of the implementation's lines with text on them, those that are comments or have one."""
    first = line_of(text.index("#if defined(DICTLEARN_IMPLEMENTATION)"))
    marked = set()
    for at, comment in comments():
        start = line_of(at)
        marked.update(range(start, start + comment.count("\n") + 1))
    licence = text[:text.find("// >>licence")].count("\n") + 1 if "// >>licence" in text else None
    filled = [n for n, line in enumerate(text.splitlines()[:licence], 1) if n > first and line.strip()]
    return sum(n in marked for n in filled) / len(filled)


def share():
    found = comment_share()
    print(f"{found:.1%} of the implementation's lines have comments")
    if found < COMMENTS:
        yield f"expected {COMMENTS:.0%} or more"


def libraries():
    """The manual's table has each library of the code with all of its classes, and no other."""
    table = re.search(r"---- FILES OF OTHER LIBRARIES -.*?^   library .*?\n(.*?)\n\n", text, re.S | re.M)
    names = re.search(r"dlrni_library_table\[\] = \{(.*?)\n\};", text, re.S)
    said = {found[1]: set(re.findall(r"[\w.-]+", found[0].replace(":", " "))) for found in re.finditer(
        r"^   (\S+) .*(\n {8}.*)*", table[1] if table else "", re.M)}
    classes = {found[1]: re.findall(r'(?:\{|_ROW\()\s*"([^"]+)",', found[2]) for found in re.finditer(
        r"static const dlrni_layout (\w+)\[\] = \{\n(.*?)\n\};", text, re.S)}
    known = {name: rows for name, rows in re.findall(r'\{"([^"]+)",\s*(\w+),', names[1] if names else "")
             if name != "refused"} # a list of signs
    sets = re.findall(r"static const \w+ dlrni_(?:numbered|set)_table\[\] = \{(.*?)\n\};", text, re.S)
    known.update((name, None) for rows in sets for name in re.findall(r'\{"([^"]+)",', rows) if name not in known)
    for name, rows in known.items():
        for missing in sorted(set(classes.get(rows, [name])) - said.get(name, set())):
            yield f"{HEADER}: FILES OF OTHER LIBRARIES lacks {missing} of {name}"
    for name in said.keys() - known.keys() - set(re.findall(r'\{"([^"]+)",', "".join(sets))):
        yield f"{HEADER}: FILES OF OTHER LIBRARIES has {name}, which the code has not"


def star():
    for at, comment in comments():
        for n, line in enumerate(comment.splitlines()):
            if re.match(r" *\* ", line) and n:
                yield f"{HEADER}:{line_of(at) + n}: a comment with a star at its line's begin"


def faults():
    """A fault whose text has moved is planted no more, and each run plants only some of them. One whose test has gone
    proves nothing."""
    table = pathlib.Path("tests/faults.txt")
    rooms_of = dict(re.findall(r"^// >>([a-z-]+)\n(.*?)(?=^// >>|\Z)", text, re.S | re.M))
    faults_of = re.findall(r"^@ (\S+) (\S+) (\S+) (.*)\n- (.*)\n", table.read_text() if table.exists() else "", re.M)
    for program, test, place, what, old in faults_of:
        program = pathlib.Path(f"tests/test_{program}.c")
        body = program.read_text() if program.exists() else ""
        # some programs name their tests as they run: after recipes, and files
        run = re.findall(r"\bRUN(?:_LONG)?\((\w+)", body)
        named = test == "-" or "test_run(" in body or any(test in name for name in run)
        if not body or not named:
            yield f"{table}: {what}: no test of {program} has {test} in its name"
        path = pathlib.Path(place)
        source = rooms_of.get(place, "") if "/" not in place else path.read_text() if path.exists() else ""
        times = source.count(old)
        if times != 1:
            yield f"{table}: {what}: expected once in {place}, found {times} times: {old}"


found = list({"rooms": rooms, "twins": twins, "once": once, "phrases": phrases, "comments": share,
              "libraries": libraries, "star": star, "faults": faults}[sys.argv[1]]())
print(*found, sep="\n")
sys.exit(bool(found))
