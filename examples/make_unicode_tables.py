"""Writes examples/unicode_tables.h: `python3 examples/make_unicode_tables.py > examples/unicode_tables.h`.

Everything comes from Python's unicodedata: the classes that tokenizers' patterns ask for, and what canonical
decomposition and composition (NFD, NFC) need. Hangul syllables are composed by arithmetic and not listed.
"""
import sys
import unicodedata as u

WHITE_SPACE = {*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
CLASSES = ("OTHER", "LETTER", "DIGIT", "LETTER_NUMBER", "OTHER_NUMBER", "MARK", "CONNECTOR", "PUNCTUATION", "SPACE")
BY_CATEGORY = {"Nd": 2, "Nl": 3, "No": 4, "Pc": 6}
HANGUL = range(0xAC00, 0xD7A4)


def class_of(c):
    if c in WHITE_SPACE:
        return 8
    category = u.category(chr(c))
    return BY_CATEGORY.get(category, {"L": 1, "M": 5, "P": 7}.get(category[0], 0))


def runs(value, last=0x110000):
    """(first, value) wherever the value changes."""
    out, before = [], None
    for c in range(last):
        v = value(c)
        if v != before:
            out.append((c, v))
        before = v
    return out


def decompositions():
    """(code point, first, second or 0, composes): canonical, one step."""
    out = []
    for c in range(0x110000):
        parts = u.decomposition(chr(c)).split()
        if not parts or parts[0].startswith("<") or c in HANGUL:
            continue
        codes = [int(p, 16) for p in parts]
        composes = len(codes) == 2 and u.normalize("NFC", chr(c)) == chr(c)
        out.append((c, codes[0], codes[1] if len(codes) == 2 else 0, int(composes)))
    return out


def table(name, kind, rows):
    lines, line = [], "   "
    for row in rows:
        item = " " + (row if isinstance(row, str) else "{" + ", ".join(map(hex, row)) + "}") + ","
        if len(line) + len(item) > 118:
            lines.append(line)
            line = "   "
        line += item
    print(f"static const {kind} {name}[] = {{")
    print("\n".join([*lines, line]))
    print("};")


def main():
    print(f"/* Unicode {u.unidata_version}: classes of characters and canonical compositions. Written by")
    print("   examples/make_unicode_tables.py; do not edit. */")
    print("/* clang-format off */")
    print("enum {\n    " + ",\n    ".join(f"UNICODE_{c}" for c in CLASSES) + "\n};\n")
    print("/* first code point of a run << 4 | class; ascending */")
    table("unicode_classes", "uint32_t", [hex(c << 4 | v) for c, v in runs(class_of)])
    print("\n/* first code point of a run << 8 | canonical combining class; ascending */")
    table("unicode_combining", "uint32_t", [hex(c << 8 | v) for c, v in runs(lambda c: u.combining(chr(c)))])
    print("\n/* code point, its first and second (or 0) part, whether the parts compose to it; ascending */")
    print("typedef struct unicode_parts {\n    uint32_t whole, first, second, composes;\n} unicode_parts;")
    table("unicode_decompositions", "unicode_parts", decompositions())
    print("/* clang-format on */")


if __name__ == "__main__":
    sys.exit(main())
