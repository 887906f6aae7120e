#!/usr/bin/env bash
# Prometheus and Alertmanager with our rules beside a running server, as plain processes. Both
# programs are in Debian and Ubuntu: apt-get install prometheus prometheus-alertmanager.
#
#     gpt-oss-server serve &
#     examples/observability/run.sh
#
# Ends, and ends both, on Ctrl-C. What may be set:
#   SERVER              what to scrape               127.0.0.1:8000
#   PROMETHEUS          where Prometheus listens     127.0.0.1:9090
#   ALERTMANAGER        where Alertmanager listens   127.0.0.1:9093
#   ALERTMANAGER_CONFIG who is told of what          alertmanager.yml beside this script
#   DATA                where both keep what they know; default: a folder that is removed in the end
set -euo pipefail

SERVER=${SERVER:-127.0.0.1:8000}
PROMETHEUS=${PROMETHEUS:-127.0.0.1:9090}
ALERTMANAGER=${ALERTMANAGER:-127.0.0.1:9093}
here=$(cd "$(dirname "$0")" && pwd)
rules=$(cd "$here/../../deploy/prometheus/rules" && pwd)
ALERTMANAGER_CONFIG=${ALERTMANAGER_CONFIG:-$here/alertmanager.yml}

alertmanager=$(command -v prometheus-alertmanager || command -v alertmanager) &&
  command -v prometheus >/dev/null ||
  { echo "error: prometheus and alertmanager are needed (on Debian: apt-get install" \
    "prometheus prometheus-alertmanager)" >&2; exit 1; }

pids=()
finish() {
  if ((${#pids[@]})); then
    kill "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
  fi
  if [[ -n ${temporary:-} ]]; then rm -rf "$temporary"; fi
}
trap finish EXIT
trap 'exit 0' INT TERM

if [[ -z ${DATA:-} ]]; then temporary=$(mktemp -d); DATA=$temporary; fi
mkdir -p "$DATA"
sed -e "s|host.docker.internal:8000|$SERVER|" -e "s|alertmanager:9093|$ALERTMANAGER|" \
  -e "s|rules/\*.yml|$rules/*.yml|" "$here/prometheus.yml" >"$DATA/prometheus.yml"

"$alertmanager" --config.file="$ALERTMANAGER_CONFIG" --storage.path="$DATA/alertmanager" \
  --web.listen-address="$ALERTMANAGER" --cluster.listen-address= \
  >"$DATA/alertmanager.log" 2>&1 &
pids+=($!)
prometheus --config.file="$DATA/prometheus.yml" --storage.tsdb.path="$DATA/prometheus" \
  --web.listen-address="$PROMETHEUS" --enable-feature=exemplar-storage \
  >"$DATA/prometheus.log" 2>&1 &
pids+=($!)

echo "scraping      http://$SERVER/metrics"
echo "Prometheus    http://$PROMETHEUS/alerts"
echo "Alertmanager  http://$ALERTMANAGER"
# Either ending by itself is an error, and the other goes too.
wait -n || true
echo "error: one of them ended; the last it said:" >&2
tail -n 3 "$DATA"/*.log >&2
exit 1
