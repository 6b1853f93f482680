#!/bin/sh
# Stop reading, and go on later from where you were: sh resume.sh URL TOKEN
set -eu
URL=$1 TOKEN=$2

field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d "\"" -f 4; }
events() { curl -sSN "$URL/api/runs/$RUN/events" -H "Authorization: Bearer $TOKEN" "$@"; }

RUN=$(curl -sS --fail-with-body "$URL/api/agents/execute" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d "{\"message\": \"Say three lines\", \"agent_name\": \"quick\"}" | field run_id)

# The id of each event is a position. The first block tells that the stream is open.
SAVED=$(events 2>/dev/null | sed -n "s/^id: //p" | sed -n "4p")
echo "up to $SAVED"

# Another day, another process:
events -H "Last-Event-ID: $SAVED" | sed -n "s/^data: .*\"event_type\".*\"offset\":\([0-9]*\).*/offset \1/p"
