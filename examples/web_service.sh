#!/bin/sh
# A web service behind NAT, for everybody with a browser. One line for each of the three places:
#
#   sh web_service.sh server      on the public host; it prints a ticket
#   sh web_service.sh client      beside the web service, with the ticket in TRIONAT_TICKET; it prints the public address
#   sh web_service.sh visitor     anywhere
#
# More flags of trionat or curl go behind. Visitors speak to the server as they would to the web service itself: serve
# https there if they should speak https.
set -eu
: "${WEB_SERVICE:=8080}"                      # where the web service listens: a port, HOST:PORT, or the path of a Unix socket
: "${PUBLIC_URL:=http://tunnel.example.com:60000/}"

role=${1:?server, client or visitor}
shift
case $role in
    server) exec trionat serve "$@" ;;
    client) exec trionat connect "$WEB_SERVICE" "$@" ;;
    visitor) exec curl --fail --silent --show-error "$PUBLIC_URL" "$@" ;;
    *)
        echo "server, client or visitor, not $role" >&2
        exit 2
        ;;
esac
