"""The version of trionat, after which the package is named."""

from __future__ import annotations

# As a value, which the build reads: to ask the installed package for it takes 20 ms and 4 MiB at every start.
VERSION = "0.1.0"
