#!/usr/bin/env bash
# Three tiers on this machine: a server, two edge servers below it, two devices below each; five rounds.
#
#   examples/federation/tiers.sh [FOLDER]       (needs fedge[simulation]; about a minute)
#
# Set FEDGE to say which fedge, and PORT for another port than 18443 (and the two above it).
set -eu
FEDGE=${FEDGE:-fedge} PORT=${PORT:-18443} FOLDER=${1:-$(mktemp -d)}
mkdir -p "$FOLDER"
cd "$FOLDER"
pids=""
stop() { for pid in $pids; do kill "$pid" 2>/dev/null || true; done; }
trap stop EXIT

echo "== the federation: its devices are two edge servers"
$FEDGE provision cloud --server-name localhost --port "$PORT" --devices site-1,site-2
for site in 1 2; do
  echo "== site $site: devices of its own, in the same federation"
  $FEDGE provision "site-$site" --server-name localhost --port $((PORT + site)) \
    --devices left,right --parent "cloud/devices/site-$site.fedge"
done

echo "== what each device has recorded (here: people of the data set watch)"
$FEDGE data split watch --out recordings > /dev/null

echo "== the server, which learns from persons 1 and 2; two edge servers; four devices"
$FEDGE server --federation cloud --state cloud-state --rounds 5 --status-port 0 \
  --set teacher.epochs=5 --set student.epochs=8 --set release.every=5 &
server=$!
pids="$pids $server"
for site in 1 2; do
  $FEDGE server --federation "site-$site" --parent "localhost:$PORT" --state "site-$site-state" \
    --status-port 0 > "site-$site.log" 2>&1 &
  pids="$pids $!"
  for side in left right; do
    $FEDGE client "site-$site/devices/$side" --data "recordings/client_p0$((2 + site))-$side.npz" \
      --state "device-$site-$side" > "device-$site-$side.log" 2>&1 &
    pids="$pids $!"
  done
done

wait "$server"
echo "== all rounds are done: two updates in each went to the server"
$FEDGE server rounds --state cloud-state
echo "== of two devices each"
$FEDGE server rounds --state site-1-state
$FEDGE server clients --state site-1-state
