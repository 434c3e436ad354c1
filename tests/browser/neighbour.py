"""Another web service at another port of the same host, and what a page of it may try: to a browser it is the same site, which is sent the same cookies."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs

from tests.e2e import services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"


@attrs.define(eq=False)
class Neighbour:
    """A web service at another port of the same host. `heard` is all that browsers have said to it."""

    port: int = 0
    heard: bytes = b""

    async def answer(self, stream: trio.SocketStream) -> None:
        """Answer one request with an empty page."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await stream.receive_some()):
                return
            data += more
        self.heard += data
        page = b"<!doctype html><title>neighbour</title>"
        await stream.send_all(ANSWER % (len(page), page))


@asynccontextmanager
async def neighbour() -> AsyncIterator[Neighbour]:
    """Run one."""
    here = Neighbour()
    async with services.serve(here.answer) as service:
        here.port = service.port
        yield here


ATTACK = """async ([own, path]) => {
    const found = [], url = own + path;
    for (const options of [
        {},
        {credentials: 'include'},
        {credentials: 'include', mode: 'no-cors'},
        {credentials: 'include', mode: 'no-cors', method: 'POST', body: '{}'},
        {credentials: 'include', method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{"request": 0}'},
        {credentials: 'include', method: 'DELETE'},
        {headers: {Authorization: 'Bearer guess'}},
    ]) {
        try {
            found.push(await (await fetch(url, options)).text());
        } catch { /* nothing came */ }
    }
    await new Promise(done => {
        const source = new EventSource(url, {withCredentials: true});
        source.onmessage = source.onopen = () => found.push('stream');
        source.onerror = () => { source.close(); done(); };
        setTimeout(done, 5000);
    });
    for (const name of ['img', 'script', 'iframe', 'link']) {
        await new Promise(done => {
            const element = document.createElement(name);
            if (name === 'link') element.rel = 'stylesheet';
            element.onload = () => { if (name !== 'iframe') found.push(name); done(); };
            element.onerror = done;
            element[name === 'link' ? 'href' : 'src'] = url;
            document.body.append(element);
            setTimeout(done, 5000);
            if (name === 'iframe') setTimeout(() => {
                try { found.push(element.contentDocument.body.textContent); } catch { /* it is another origin's */ }
                done();
            }, 500);
        });
    }
    return found.filter(Boolean);
}"""
"""Asks `path` of another origin in all ways that a page has; returns what it got to see."""
