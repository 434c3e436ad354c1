"""One decoder under atheris: `python -m tests.fuzz.guided TARGET [options of libFuzzer] [CORPUS | FILE]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["trionat"]):
    from tests.fuzz.decoders import DECODERS

target = DECODERS[sys.argv.pop(1)]
atheris.Setup(sys.argv, target)
atheris.Fuzz()
