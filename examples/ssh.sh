#!/bin/sh
# Remote help over SSH: log in to a machine behind NAT. One line for each of the three places:
#
#   sh ssh.sh server              on the public host; it prints a ticket
#   sh ssh.sh client              on the machine that needs help, with the ticket in TRIONAT_TICKET
#   sh ssh.sh visitor             on the helper's machine; more options of ssh, and a command, go behind
#
# Ctrl-C on the client ends the help. HostKeyAlias has ssh remember the machine by a name of its own: the public port may
# be another machine's tomorrow.
set -eu
: "${SSHD:=22}"                               # where sshd listens: a port, or HOST:PORT
: "${VISIT_PORT:=60022}"
: "${PUBLIC_HOST:=tunnel.example.com}"
: "${MACHINE:=helped-machine}"

role=${1:?server, client or visitor}
shift
case $role in
    server) exec trionat serve --visit-port "$VISIT_PORT" "$@" ;;
    client) exec trionat connect "$SSHD:$VISIT_PORT" --name "$MACHINE" "$@" ;;
    visitor) exec ssh -p "$VISIT_PORT" -o "HostKeyAlias=$MACHINE" "$PUBLIC_HOST" "$@" ;;
    *)
        echo "server, client or visitor, not $role" >&2
        exit 2
        ;;
esac
