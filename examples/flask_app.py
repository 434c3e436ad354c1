"""A Flask program that makes itself public, for as long as it runs.

`TRIONAT_TICKET=tn1_… python flask_app.py` needs flask. Where a server such as gunicorn runs several processes of a program, one of them does this: another client
would get a visit port of its own.
"""

from __future__ import annotations

import os

from flask import Flask

import trionat

PORT = int(os.environ.get("PORT", "5000"))
app = Flask(__name__)


@app.get("/")
def index() -> str:
    return "hello from behind NAT\n"


def main() -> None:
    config = trionat.ClientConfig(
        ticket=os.environ["TRIONAT_TICKET"], services=(trionat.parse_service(str(PORT)),)
    )
    # A thread with a Trio loop; leaving the block ends it.
    with trionat.TrioThread(trionat.connect(config), timeout=30) as client:
        print(f"public at {client.services[0].shown}", flush=True)
        app.run(host="127.0.0.1", port=PORT)  # until Ctrl-C


if __name__ == "__main__":
    main()
