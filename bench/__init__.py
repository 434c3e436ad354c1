"""Measures trionat beside other programs, all in one run, and writes `docs/benchmarks.md`: `nox -s bench`.

Every measurement builds a *chain* anew: visitor -> public end -> private end -> service, each of the two ends a program of its
own, all over the loopback. `chain` is its shape, `product` and `rivals` are the ways to build it, `scenarios` what is measured
on it, with the generators of `load` and the visitors of `visitors`; `suite` goes round. `results` are compared in `targets`, and
`report` and `plots` show them.

Linux only: processor time, memory and listening ports are read from /proc.
"""
