#!/bin/sh
# Start a run and wait for its result: sh execute.sh URL TOKEN
set -eu
URL=$1 TOKEN=$2

curl -sS --fail-with-body "$URL/api/agents/execute" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d "{\"message\": \"Say three lines\", \"agent_name\": \"quick\"}"
