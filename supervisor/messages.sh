#!/bin/sh
# Generates messages_pb2.py and its stubs from /messages.proto, which protobuf's pool knows as
# tubevisor/messages.proto: a user's own messages.proto must not collide with it.
# With a directory as argument it writes there instead of here (CI compares).
set -eu
cd "$(dirname "$0")/.."
into=${1:-supervisor}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
python -m grpc_tools.protoc -Itubevisor=. --python_out="$out" --mypy_out=quiet:"$out" tubevisor/messages.proto
cp "$out/tubevisor/messages_pb2.py" "$out/tubevisor/messages_pb2.pyi" "$into/"
