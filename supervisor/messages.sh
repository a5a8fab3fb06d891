#!/bin/sh
# Generates messages_pb2.py and its stubs from /messages.proto, which protobuf's pool knows as
# tubevisor/messages.proto: a user's own messages.proto must not collide with it.
# With --check it compares instead, and fails where what is committed is not what is generated.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
python -m grpc_tools.protoc -Itubevisor=. --python_out="$out" --mypy_out=quiet:"$out" tubevisor/messages.proto
for file in messages_pb2.py messages_pb2.pyi; do
    if [ "${1:-}" = --check ]; then
        cmp "$out/tubevisor/$file" "supervisor/$file" || { echo "run: make messages" >&2; exit 1; }
    else
        cp "$out/tubevisor/$file" "supervisor/$file"
    fi
done
