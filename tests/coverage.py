"""coverage.py BUILD HEADER: merges what the programs of BUILD/coverage ran of HEADER, by line and by branch.

A branch is one of the ways out of a condition, for each set of kernels by itself; it counts as taken if any program
took it. Prints lines and branches by room, then the lines with branches that nothing took; fails below what was
reached. What is not taken, and why:
  kernels, crc32       what a processor lacks: each set is asked for, but this one has them all
  base, buffer, load   sums and products that overflow, guarded once more where an earlier check already holds
  files                mmap of a file of no size, of one beyond the address space; no room for huge pages
  safetensors, entries the turning of bytes, which a big-endian machine does (`make matrix` runs it there)
  json, safetensors    a header that is no object: the first byte of the file has said that it is one
  zip, pickle          second halves of conditions on hostile files, which the fuzzers reach
  any room             `status == DLRN_OK &&` before an error that is kept: a second fault after the first"""

import gzip, json, pathlib, re, subprocess, sys

REACHED_LINES, REACHED_BRANCHES = 0.99, 0.95


def counts_of(note):
    """{(function, line): (count, [branch counts])} of one program."""
    said = subprocess.run(["gcov", "--stdout", "--json-format", "--branch-probabilities", note.name], cwd=note.parent,
                          capture_output=True, check=True).stdout
    if said[:2] == b"\x1f\x8b":
        said = gzip.decompress(said)
    for document in said.splitlines():
        for file in json.loads(document)["files"]:
            if file["file"].endswith(header.name):
                for line in file["lines"]:
                    key = line.get("function_name", ""), line["line_number"]
                    yield key, line["count"], [branch["count"] for branch in line["branches"]]


def room_of(text):
    """The room that each line stands in."""
    room, rooms = "", [""]
    for line in text:
        found = re.match(r"// >>([a-z-]+)$", line)
        room = found.group(1) if found else room
        rooms.append(room)
    return rooms


build, header = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
source = header.read_text().splitlines()
rooms, lines, branches = room_of(source), {}, {}
for note in sorted((build / "coverage").glob("*.gcda")):
    for key, count, ways in counts_of(note):
        lines[key] = lines.get(key, 0) + count
        have = branches.setdefault(key, [0] * len(ways))
        if len(have) != len(ways):
            sys.exit(f"{note.name}: other branches in line {key[1]} than before")
        branches[key] = [a + b for a, b in zip(have, ways)]

table, missed = {}, {}
for key, count in lines.items():
    row = table.setdefault(rooms[key[1]], [0, 0, 0, 0])
    ways = branches[key]
    row[0] += count > 0
    row[1] += 1
    row[2] += sum(way > 0 for way in ways)
    row[3] += len(ways)
    if count == 0 or 0 in ways:
        missed.setdefault(key[1], [0, 0, []])
        missed[key[1]][0] += ways.count(0)
        missed[key[1]][1] += len(ways)
        missed[key[1]][2].append(key[0])
total = [sum(row[i] for row in table.values()) for i in range(4)]
if not total[1]:
    sys.exit("no program has run")

print("room             lines            branches")
for room, row in [*table.items(), ("all", total)]:
    part = row[2] / row[3] if row[3] else 1
    print(f"{room:15} {row[0]:5} of {row[1]:5} {row[0] / row[1]:7.2%}  {row[2]:5} of {row[3]:5} {part:7.2%}")
print("\nNot taken (line, ways of all, function):")
for line in sorted(missed):
    none, ways, functions = missed[line]
    where = functions[0] + (f" and {len(functions) - 1} more" if len(functions) > 1 else "")
    print(f"{line:5} {none:2}/{ways:<3} {where:45} {source[line - 1].strip()[:100]}")
good = [total[0] / total[1] >= REACHED_LINES, total[2] / total[3] >= REACHED_BRANCHES]
for name, part, reached, fine in (("lines", total[0] / total[1], REACHED_LINES, good[0]),
                               ("branches", total[2] / total[3], REACHED_BRANCHES, good[1])):
    print(f"{'ok  ' if fine else 'FAIL'} {name}: {part:.2%}, at least {reached:.0%}")
print(f"{sum(good)} passed, {2 - sum(good)} failed")
sys.exit(not all(good))
