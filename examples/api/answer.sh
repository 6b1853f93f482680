#!/bin/sh
# Answer a run that asks: sh answer.sh URL TOKEN
set -eu
URL=$1 TOKEN=$2

field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d "\"" -f 4; }

ASKS=$(curl -sS --fail-with-body "$URL/api/agents/execute" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d "{\"message\": \"Look into it\", \"agent_name\": \"asking\"}")
RUN=$(echo "$ASKS" | field run_id)
echo "$ASKS" | field prompt

curl -sS --fail-with-body -o /dev/null "$URL/api/runs/$RUN/input" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d "{\"input_id\": \"$(echo "$ASKS" | field input_id)\", \"value\": \"quick\"}"

curl -sSN -o /dev/null "$URL/api/runs/$RUN/events" -H "Authorization: Bearer $TOKEN"
curl -sS --fail-with-body "$URL/api/runs/$RUN" -H "Authorization: Bearer $TOKEN"
