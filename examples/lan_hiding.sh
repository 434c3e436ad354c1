#!/bin/sh
# Hide a service inside a LAN: its users know the server's address only, and the service listens on the loopback of its
# own machine, where nobody else in the LAN can reach it. One line for each of the three places:
#
#   sh lan_hiding.sh server       on the machine that everybody in the LAN may know; it prints a ticket
#   sh lan_hiding.sh client       on the service's machine, with the ticket in TRIONAT_TICKET
#   sh lan_hiding.sh visitor      anywhere in the LAN
#
# The machine of the service needs no open port: the client only makes connections, to the server's control port.
set -eu
: "${LAN_ADDRESS:=192.168.1.2}"               # the server's; it listens there and on no other interface
: "${CONTROL_PORT:=8007}"
: "${TUNNEL_PORT:=8008}"
: "${VISIT_PORT:=60080}"
: "${HIDDEN_SERVICE:=127.0.0.1:8080}"

role=${1:?server, client or visitor}
shift
case $role in
    server)
        exec trionat serve --controller-addr "$LAN_ADDRESS:$CONTROL_PORT" --tunnel-addr "$LAN_ADDRESS:$TUNNEL_PORT" \
            --visit-port "$VISIT_PORT" "$@"
        ;;
    client) exec trionat connect "$HIDDEN_SERVICE:$VISIT_PORT" "$@" ;;
    visitor) exec curl --fail --silent --show-error "http://$LAN_ADDRESS:$VISIT_PORT/" "$@" ;;
    *)
        echo "server, client or visitor, not $role" >&2
        exit 2
        ;;
esac
