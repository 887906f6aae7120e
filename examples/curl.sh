#!/usr/bin/env bash
# The API by curl: health, models, tokens, a chat, a stream, and an error.
#   URL=http://host:9000 API_KEY=… MODEL=20b examples/curl.sh
set -euo pipefail

url=${URL:-http://127.0.0.1:8000}
model=${MODEL:-tiny}
auth=(-H "Authorization: Bearer ${API_KEY:-none}")
json=(-H "Content-Type: application/json")

show() { printf '\n\n== %s\n' "$1"; }

show "is it ready?"
curl -sS "$url/health"

show "what does it serve?"
curl -sS "${auth[@]}" "$url/v1/models"

show "how many tokens is that?"
curl -sS "${auth[@]}" "${json[@]}" "$url/tokenize" -d '{"prompt": "Hello, world!"}'

show "a chat (-i shows the request id and the route)"
curl -sS -i "${auth[@]}" "${json[@]}" "$url/v1/chat/completions" -d '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "What does 429 mean?"}],
  "max_tokens": 64
}'

show "the same, streamed"
curl -sS -N "${auth[@]}" "${json[@]}" "$url/v1/chat/completions" -d '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "What does 429 mean?"}],
  "max_tokens": 64,
  "stream": true,
  "stream_options": {"include_usage": true}
}'

show "a mistake is named"
curl -sS "${auth[@]}" "${json[@]}" "$url/v1/chat/completions" -d '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "What does 429 mean?"}],
  "temperature": 3
}'
echo
