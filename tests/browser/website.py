"""A web site that asks of a tunnel what sites ask: events, uploads, a video that is fetched in parts, a web socket."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>A site</title>
<link rel="icon" href="data:,"><h1 id="title">Hello from behind the tunnel</h1>
<script>
async function events(count) {
  const got = [];
  const source = new EventSource("/events");
  await new Promise((done, failed) => {
    source.onmessage = event => { got.push([event.data, performance.now()]); if (got.length == count) done(); };
    source.onerror = failed;
  });
  source.close();
  return got;
}
async function upload(size) {
  const body = new Uint8Array(size);
  for (let at = 0; at < size; at += 65536) body[at] = at / 65536 % 251;
  const answer = await fetch("/upload", {method: "POST", body});
  const digest = await crypto.subtle.digest("SHA-256", body);
  const hex = [...new Uint8Array(digest)].map(each => each.toString(16).padStart(2, "0")).join("");
  return [hex, await answer.text()];
}
async function socket(url, words) {
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  await new Promise((done, failed) => { socket.onopen = done; socket.onerror = failed; });
  const got = [];
  for (const word of words) {
    const answer = new Promise(done => { socket.onmessage = event => done(event.data); });
    socket.send(word);
    got.push(await answer);
  }
  socket.close();
  return got;
}
async function film() {  // make a film here, and bring it there
  const canvas = document.createElement("canvas");
  canvas.width = 320; canvas.height = 240;
  const brush = canvas.getContext("2d");
  const recorder = new MediaRecorder(canvas.captureStream(25), {mimeType: "video/webm", videoBitsPerSecond: 2000000});
  const pieces = [];
  recorder.ondataavailable = event => pieces.push(event.data);
  recorder.start(100);
  for (let frame = 0; frame < 75; frame++) {
    brush.fillStyle = `hsl(${frame * 5}, 80%, 50%)`;
    brush.fillRect(0, 0, 320, 240);
    for (let dot = 0; dot < 500; dot++) { brush.fillStyle = `hsl(${dot * frame}, 80%, 50%)`; brush.fillRect(Math.random() * 320, Math.random() * 240, 8, 8); }
    await new Promise(done => setTimeout(done, 40));
  }
  await new Promise(done => { recorder.onstop = done; recorder.stop(); });
  const body = new Blob(pieces, {type: "video/webm"});
  await fetch("/video", {method: "POST", body});
  return body.size;
}
async function play() {
  const video = document.createElement("video");
  video.muted = true;
  video.src = "/video";
  document.body.append(video);
  await new Promise((done, failed) => { video.oncanplay = done; video.onerror = () => failed(new Error(video.error.message)); });
  video.currentTime = 1.5;
  await new Promise(done => { video.onseeked = done; });
  await video.play();
  await new Promise(done => { video.ontimeupdate = () => { if (video.currentTime > 2) done(); }; });
  return [video.videoWidth, video.videoHeight, video.currentTime];
}
</script>
"""


class Site(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.video = b""
        self.ranges: list[str] = []
        self.seen: list[dict[str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site  # type: ignore[mutable-override]

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                for number in range(100):
                    self.wfile.write(b"data: %d\n\n" % number)
                    self.wfile.flush()
                    time.sleep(0.2)
            except OSError:
                pass
            self.close_connection = True
        elif self.path == "/video":
            self._send_video()
        else:
            self._send(PAGE, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        digest = hashlib.sha256()
        left = int(self.headers["Content-Length"])
        kept = bytearray()
        while left:
            piece = self.rfile.read(min(left, 2**20))
            left -= len(piece)
            digest.update(piece)
            if self.path == "/video":
                kept += piece
        if self.path == "/video":
            self.server.video = bytes(kept)
        self._send(digest.hexdigest().encode(), "text/plain")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_video(self) -> None:
        video, wanted = self.server.video, self.headers.get("Range")
        if wanted is None:
            self._send(video, "video/webm")
            return
        self.server.ranges.append(wanted)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first), int(last or len(video) - 1)
        part = video[begin : end + 1]
        self.send_response(206)
        self.send_header("Content-Type", "video/webm")
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(video)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        try:
            self.wfile.write(part)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@contextmanager
def website() -> Iterator[Site]:
    """Run it in threads of its own."""
    site = Site()
    thread = threading.Thread(target=site.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        thread.join()
        site.server_close()
