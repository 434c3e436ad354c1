"""Measures trionat beside other programs, all in one run, and writes `docs/benchmarks.md`: `nox -s bench`.

Every measurement builds a *chain* anew: visitor -> public end -> private end -> service, each of the two ends a program of its
own, all over the loopback. `chain` is its shape, `product` and `rivals` are the ways to build it, `scenarios` what is measured
on it, with the generators of `load`, the visitors of `visitors` and those of `outage`, whose `link` is cut; `suite` goes round.
`results` are compared in `targets`, and `report` and `plots` show them.

`workers` is a comparison of its own, of a server with one process and with several: `python -m bench.workers`. `start` says how long commands take
to start, and what they hold: `python -m bench.start`.

What is not on the machine is left out, and the page says what is missing. All of it, on Debian: `apt-get install iperf3
redis-server redis-tools nginx-light libnginx-mod-stream openssh-server openssh-client`, and cargo, by which rathole and bore are built;
frp (`frps` and `frpc`), `chisel` and NAT, the Go program (`nat-server` and `nat-client`), if they are on the PATH.

Linux only: processor time, memory and listening ports are read from /proc.
"""
