#!/usr/bin/env bash
# One server, three devices, five rounds over TLS on this machine; the server is killed in the middle.
#
#   examples/federation/demo.sh [FOLDER]        (needs fedge[simulation]; about a minute)
#
# Set FEDGE to say which fedge, and PORT for another port than 18443.
set -eu
FEDGE=${FEDGE:-fedge} PORT=${PORT:-18443} FOLDER=${1:-$(mktemp -d)}
mkdir -p "$FOLDER"
cd "$FOLDER"
devices="p03-left p03-right p04-left"
pids=""
stop() { for pid in $pids; do kill "$pid" 2>/dev/null || true; done; }
trap stop EXIT

echo "== a federation: certificates, keys, one bundle per device"
$FEDGE provision federation --server-name localhost --port "$PORT" --devices "${devices// /,}"

echo "== what each device has recorded (here: people of the data set watch)"
$FEDGE data split watch --out recordings > /dev/null

serve() { # the server learns from persons 1 and 2, which are its own
  $FEDGE server --federation federation --state server-state --rounds 5 --status-port 0 \
    --set teacher.epochs=5 --set student.epochs=8 --set release.every=5 "$@" &
  server=$!
  pids="$pids $server"
}

echo "== the server, and three devices"
serve
for name in $devices; do
  $FEDGE client "federation/devices/$name" --data "recordings/client_$name.npz" --state "state-$name" \
    > "$name.log" 2>&1 &
  pids="$pids $!"
done

until [ -f server-state/metrics.jsonl ] && grep -q '"event": *"round"' server-state/metrics.jsonl; do sleep 0.2; done
echo "== kill -9: the server, and with it everything that it had started"
kill -9 "$server"
sleep 2

echo "== the same command again"
serve
wait "$server"
echo "== all rounds are done; what the server says of them"
$FEDGE server rounds --state server-state
