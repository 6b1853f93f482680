#!/bin/sh
# List runs, and threads with their messages: sh listing.sh URL TOKEN
set -eu
URL=$1 TOKEN=$2

field() { grep -o "\"$1\":\"[^\"]*\"" | head -n 1 | cut -d "\"" -f 4; }
get() { curl -sS --fail-with-body "$URL$1" -H "Authorization: Bearer $TOKEN"; }

curl -sS --fail-with-body -o /dev/null "$URL/api/agents/execute" \
  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \
  -d "{\"message\": \"Say three lines\", \"agent_name\": \"quick\"}"

get "/api/runs?page_size=10&status=SUCCEEDED,FAILED"
THREAD=$(get "/api/threads?page_size=10" | field thread_id)
get "/api/threads/$THREAD/messages"
