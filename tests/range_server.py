"""A web server on loopback for the downloader's test: `python3 tests/range_server.py FOLDER PORT_FILE LOG`.

Serves FOLDER with Range requests; writes its port to PORT_FILE and a line for each GET to LOG. The first part of a
path may name a fault, and the file is the rest: under /cut.../ the first answer for a path breaks off half-way, under
/short/ every answer does; under /less/ HEAD tells one byte less than GET sends; /norange/ always sends the whole file.
"""
import http.server
import pathlib
import sys
import urllib.parse

ROOT, PORT_FILE, LOG = (pathlib.Path(a) for a in sys.argv[1:4])


FAULTS = ("cut", "short", "less", "norange")


class Handler(http.server.BaseHTTPRequestHandler):
    was_cut = set()

    def log_message(self, *_):
        pass

    def find(self):
        """The fault and the bytes that the path names; None if there is no such file."""
        path = urllib.parse.unquote(self.path).lstrip("/")
        fault, _, rest = path.partition("/")
        if not fault.startswith(FAULTS):
            fault, rest = "", path
        file = ROOT / rest
        if file.is_dir():
            return fault, "".join(f'<a href="{p.name}">{p.name}</a>\n' for p in sorted(file.iterdir())).encode()
        return fault, file.read_bytes() if file.is_file() else None

    def first_byte(self, fault):
        asked = self.headers.get("Range", "")
        return int(asked[6:].split("-")[0]) if asked.startswith("bytes=") and fault != "norange" else 0

    def head(self, first, size):
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - first))
        self.end_headers()

    def breaks_off(self, fault):
        first_time = self.path not in Handler.was_cut
        Handler.was_cut.add(self.path)
        return fault == "short" or (fault.startswith("cut") and first_time)

    def do_HEAD(self):
        fault, data = self.find()
        if data is None:
            self.send_error(404)
        else:
            self.head(0, len(data) - (fault == "less"))

    def do_GET(self):
        fault, data = self.find()
        if data is None:
            self.send_error(404)
            return
        first = self.first_byte(fault)
        if first >= len(data) > 0:
            self.send_error(416)
            return
        with LOG.open("a") as log:
            log.write(f"{self.path} from {first}\n")
        self.head(first, len(data))
        body = data[first:]
        self.wfile.write(body[: len(body) // 2] if self.breaks_off(fault) else body)
        self.close_connection = True


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
PORT_FILE.write_text(str(server.server_address[1]))
server.serve_forever()
