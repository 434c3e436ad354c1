#!/bin/sh
# A Redis behind NAT, always at the same public port. One line for each of the three places:
#
#   sh redis.sh server            on the public host; it prints a ticket
#   sh redis.sh client            beside Redis, with the ticket in TRIONAT_TICKET
#   sh redis.sh visitor PING      anywhere
#
# The public port is open to everybody who finds it: give Redis a password (requirepass, or ACL users) first, and let
# visitors that cross networks you do not trust speak TLS to it.
set -eu
: "${REDIS:=6379}"                            # where Redis listens: a port, HOST:PORT, or the path of a Unix socket
: "${VISIT_PORT:=60001}"
: "${PUBLIC_HOST:=tunnel.example.com}"

role=${1:?server, client or visitor}
shift
case $role in
    server) exec trionat serve --visit-port "$VISIT_PORT" "$@" ;;
    client) exec trionat connect "$REDIS:$VISIT_PORT" "$@" ;;
    visitor) exec redis-cli -h "$PUBLIC_HOST" -p "$VISIT_PORT" "$@" ;;
    *)
        echo "server, client or visitor, not $role" >&2
        exit 2
        ;;
esac
