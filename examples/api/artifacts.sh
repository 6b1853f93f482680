#!/bin/sh
# Read what a run leaves behind: sh artifacts.sh URL TOKEN
set -eu
URL=$1 TOKEN=$2

field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d "\"" -f 4; }

RUN=$(curl -sS --fail-with-body "$URL/api/agents/execute" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d "{\"message\": \"Write it down\", \"agent_name\": \"writing\"}" | field run_id)

ARTIFACT=$(curl -sS --fail-with-body "$URL/api/runs/$RUN/artifacts" -H "Authorization: Bearer $TOKEN" | field url)
echo "$ARTIFACT"
curl -sS --fail-with-body "$URL$ARTIFACT" -H "Authorization: Bearer $TOKEN"
