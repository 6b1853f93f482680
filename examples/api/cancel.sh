#!/bin/sh
# Cancel a run: sh cancel.sh URL TOKEN
set -eu
URL=$1 TOKEN=$2

field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d "\"" -f 4; }

RUN=$(curl -sS --fail-with-body "$URL/api/agents/execute" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" -H "Prefer: respond-async" \
  -d "{\"message\": \"Take your time\", \"agent_name\": \"slow\", \"params\": {\"seconds\": 30}}" | field run_id)

curl -sS --fail-with-body "$URL/api/runs/$RUN/cancel" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" -d "{\"reason\": \"not needed any more\"}"

# Its events end when it has.
curl -sSN "$URL/api/runs/$RUN/events" -H "Authorization: Bearer $TOKEN" | grep -A 1 "^event: run_completed"
