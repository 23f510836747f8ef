"""A web server on loopback for the downloader's test: `python3 tests/range_server.py FOLDER PORT_FILE LOG`.

Serves FOLDER with Range requests; writes its port to PORT_FILE and a line for each GET to LOG. A path under /cut.../
is that of the file without it, but the first answer breaks off half-way; under /short/ it always breaks off; under
/long/ the header tells one byte less than the file has.
"""
import http.server
import pathlib
import sys
import urllib.parse

ROOT, PORT_FILE, LOG = (pathlib.Path(a) for a in sys.argv[1:4])


class Handler(http.server.BaseHTTPRequestHandler):
    cut = set()

    def log_message(self, *_):
        pass

    def find(self):
        path = urllib.parse.unquote(self.path).lstrip("/")
        mode, _, rest = path.partition("/")
        if mode.startswith("cut") or mode in ("short", "long"):
            return mode, ROOT / rest
        return "", ROOT / path

    def answer(self, with_body):
        mode, path = self.find()
        if path.is_dir():
            links = "".join(f'<a href="{p.name}">{p.name}</a>\n' for p in sorted(path.iterdir()))
            data = links.encode()
        elif path.is_file():
            data = path.read_bytes()
        else:
            self.send_error(404)
            return
        if mode == "long":
            data = data[:-1]
        first = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first = int(asked[6:].split("-")[0])
        if first >= len(data) > 0:
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if not with_body:
            return
        with LOG.open("a") as log:
            log.write(f"{self.path} from {first}\n")
        body = data[first:]
        if mode == "short" or (mode.startswith("cut") and self.path not in Handler.cut):
            Handler.cut.add(self.path)
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
PORT_FILE.write_text(str(server.server_address[1]))
server.serve_forever()
