# %% [markdown]
# # Make what a notebook serves public
#
# Each part between `# %%` is a cell: Jupyter (with jupytext), VS Code and PyCharm open this file as a notebook. `TRIONAT_TICKET` has a ticket. A notebook has an asyncio
# loop of its own, which is busy while a cell runs: the client lives in a thread (`trionat.TrioThread`), and goes on between cells.

# %%
from __future__ import annotations

import os
import tempfile
import threading
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trionat

# %% [markdown]
# ## Something to serve
# Here a folder with a page, by the standard library's web server. A dashboard (Panel, Dash, Bokeh) that listens on a port does as well.

# %%
opened = ExitStack()
folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
(folder / "index.html").write_text("<h1>The result is 42</h1>")
web = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
threading.Thread(target=web.serve_forever, daemon=True).start()

# %% [markdown]
# ## Make it public
# The `ExitStack` stands for the block of a `with`, which cannot go on in another cell.

# %%
config = trionat.ClientConfig(
    ticket=os.environ["TRIONAT_TICKET"], services=(trionat.parse_service(str(web.server_port)),)
)
tunnel = trionat.TrioThread(trionat.connect(config), timeout=30)
client = opened.enter_context(tunnel)
print(f"http://{client.services[0].shown}/")

# %% [markdown]
# ## Look who is there

# %%
for visitor in tunnel.call(client.snapshot).visitors:
    print(visitor.address, visitor.received, visitor.sent)

# %% [markdown]
# ## The end
# Without this cell, the end of the kernel is the end of the client.

# %%
opened.callback(web.server_close)
opened.callback(web.shutdown)
opened.close()
