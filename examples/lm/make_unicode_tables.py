"""Writes examples/lm/unicode_tables.h: `python3 make_unicode_tables.py > unicode_tables.h`.

Everything comes from Python's unicodedata: the classes that the patterns of tokenizers use, what the four normal forms
need, and lower case. Hangul syllables are decomposed and composed by arithmetic and are not listed.
"""
import sys
import textwrap
import unicodedata as u

ALL = range(0x110000)
HANGUL = range(0xAC00, 0xD7A4)
BLOCK = 16  # so many code points are searched one after the other

# ---- classes
WHITE_SPACE = {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
# Other_Alphabetic that is no mark, and Join_Control: regular expressions count them to \w.
WORD = {0x200C, 0x200D, *range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A), *range(0x1F150, 0x1F16A),
        *range(0x1F170, 0x1F18A)}
CLASSES = ("OTHER", "LETTER", "DIGIT", "LETTER_NUMBER", "OTHER_NUMBER", "MARK", "CONNECTOR", "PUNCTUATION", "SPACE",
           "LINE_END", "WORD")
BY_CATEGORY = {"Nd": "DIGIT", "Nl": "LETTER_NUMBER", "No": "OTHER_NUMBER", "Pc": "CONNECTOR"}
BY_LETTER = {"L": "LETTER", "M": "MARK", "P": "PUNCTUATION"}


def class_of(c):
    category = u.category(chr(c))
    name = BY_CATEGORY.get(category) or BY_LETTER.get(category[0], "OTHER")
    if c in WHITE_SPACE:
        name = "LINE_END" if chr(c) in "\r\n" else "SPACE"
    elif c in WORD:
        name = "WORD"
    elif chr(c) in "$+<=>^`|~":
        name = "PUNCTUATION"  # as all of ASCII's symbols
    return CLASSES.index(name)


def runs(value):
    """(first, value) wherever the value changes."""
    return [(c, value(c)) for c in ALL if c == 0 or value(c) != value(c - 1)]


# ---- normal forms
def parts_of(c):
    """The parts that c stands for, one step; whether it is a compatibility."""
    parts = [] if c in HANGUL else u.decomposition(chr(c)).split()
    compatible = bool(parts) and parts[0].startswith("<")
    return [int(p, 16) for p in parts[compatible:]], compatible


def decompositions():
    """Blocks of consecutive code points as (first, place of its parts), and the parts, each with two flags."""
    blocks, stream = [], []
    for c in ALL:
        parts, compatible = parts_of(c)
        if not parts:
            continue
        if not blocks or c != before + 1 or c - blocks[-1][0] == BLOCK:
            blocks.append((c, len(stream)))
        before = c
        stream += [p << 2 | compatible << 1 | (k == len(parts) - 1) for k, p in enumerate(parts)]
    return [*blocks, (0x110000, len(stream))], stream


def compositions():
    """What pairs compose to, in the order of the pairs."""
    pairs = [(parts, c) for c in ALL for parts, compatible in [parts_of(c)] if len(parts) == 2 and not compatible]
    return [c for parts, c in sorted(pairs) if u.normalize("NFC", chr(c)) == chr(c)]


def lower_cases():
    """(first, last, step, lower case of the first) of runs; U+0130, which becomes two, is left to the code."""
    out = []
    for c in ALL:
        low = chr(c).lower()
        if low == chr(c) or len(low) > 1:
            continue
        difference, run = ord(low) - c, out[-1] if out else None
        gap = c - run[1] if run else 0
        if run and run[3] == difference and gap <= 2 and gap in (run[2], run[2] or gap):
            run[1:3] = c, gap
        else:
            out.append([c, c, 0, difference])
    return [(first, last, step or 1, first + difference) for first, last, step, difference in out]


# ---- the file
def table(what, kind, name, items):
    lines, line = [], "   "
    for item in items:
        item = f" {item},"
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += item
    comment = textwrap.fill(f"/* {what} */", 100, subsequent_indent="   ", break_on_hyphens=False)
    print(f"\n{comment}\nstatic const {kind} {name} = {{")
    print("\n".join([*lines, line]))
    print("};")


def main():
    print(f"/* Unicode {u.unidata_version}: classes of characters, normal forms, lower case. Written by")
    print("   examples/lm/make_unicode_tables.py; do not edit. */")
    print("/* clang-format off */")
    print("enum {\n    " + ",\n    ".join(f"UNICODE_{c}" for c in (*CLASSES, "CLASSES")) + "\n};")
    table("class of each character of ASCII", "unsigned char", "unicode_ascii[]", map(class_of, range(128)))
    table("first code point of a run << 4 | class; ascending", "uint32_t", "unicode_classes[]",
          (hex(c << 4 | v) for c, v in runs(class_of)))
    table("first code point of a run << 8 | canonical combining class; ascending", "uint32_t", "unicode_combining[]",
          (hex(c << 8 | v) for c, v in runs(lambda c: u.combining(chr(c)))))
    blocks, stream = decompositions()
    table("blocks of consecutive code points that have parts: the first one, where its parts begin; ascending",
          "uint32_t", "unicode_blocks[][2]", (f"{{{c:#x}, {at}}}" for c, at in blocks))
    table("part << 2 | 2 if it is a compatibility | 1 if it is the last part of its code point", "uint32_t",
          "unicode_parts[]", map(hex, stream))
    table("code points that their two parts compose to, in the order of the parts", "uint32_t",
          "unicode_compositions[]", map(hex, compositions()))
    table("lower case of runs: {first, last, step, lower case of the first}; ascending", "uint32_t",
          "unicode_lower[][4]", (f"{{{a:#x}, {b:#x}, {step}, {low:#x}}}" for a, b, step, low in lower_cases()))
    print("/* clang-format on */")


if __name__ == "__main__":
    sys.exit(main())
