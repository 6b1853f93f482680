#!/bin/sh
# Start a run and follow its events as they happen: sh events.sh URL TOKEN
set -eu
URL=$1 TOKEN=$2

field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d "\"" -f 4; }

RUN=$(curl -sS --fail-with-body "$URL/api/agents/execute" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" -H "Prefer: respond-async" \
  -d "{\"message\": \"Say three lines\", \"agent_name\": \"quick\"}" | field run_id)

# Server-sent events: it ends with the run.
curl -sSN --fail-with-body "$URL/api/runs/$RUN/events" -H "Authorization: Bearer $TOKEN"
