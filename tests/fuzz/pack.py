"""pack.py pack FOLDER ARCHIVE / pack.py unpack ARCHIVE FOLDER: the inputs of a fuzzer as one file.

An archive is each input's length in 4 bytes, little-endian, and its bytes; the short ones come first. The same inputs
give the same archive."""

import hashlib, pathlib, sys


def pack(folder, archive):
    inputs = sorted({path.read_bytes() for path in folder.iterdir()}, key=lambda data: (len(data), data))
    archive.write_bytes(b"".join(len(data).to_bytes(4, "little") + data for data in inputs))


def unpack(archive, folder):
    folder.mkdir(parents=True, exist_ok=True)
    data = archive.read_bytes()
    while data:
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 + size:
            sys.exit(f"{archive}: ends within an input")
        one, data = data[4:4 + size], data[4 + size:]
        (folder / hashlib.sha1(one).hexdigest()).write_bytes(one) # as libFuzzer names them


{"pack": pack, "unpack": unpack}[sys.argv[1]](pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
