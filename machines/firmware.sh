#!/bin/sh
# Fetches Debian's package of MicroPython for the BBC micro:bit and unpacks its firmware into
# .cache/firmware/firmware.hex. Needs apt-get and dpkg, but neither root nor the system's package lists: where
# there are none, lists of our own are fetched into .cache/apt, from the system's sources and with its keys.
# Usage: sh machines/firmware.sh [CACHE_FOLDER]
set -eu

package=firmware-microbit-micropython
cache=$(mkdir -p "${1:-.cache}" && cd "${1:-.cache}" && pwd)
target=$cache/firmware/firmware.hex

fail() {
    echo "firmware: $*" >&2
    echo "firmware: the micro:bit board needs it; config/demo.yaml runs without." >&2
    exit 1
}

[ -s "$target" ] && { echo "firmware: $target is there already"; exit 0; }
for tool in apt-get dpkg; do
    command -v "$tool" >/dev/null || fail "$tool is missing: $package comes from a Debian archive"
done

work=$cache/apt
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/download" "$cache/firmware"

# Debug::NoLocking: nothing of the system is written, so nothing has to be locked.
own_lists() {
    apt-get -q -o Dir::State="$work/state" -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}

cd "$work/download"
rm -f ./*.deb
if ! apt-get -q -o APT::Sandbox::User= download "$package" >"$work/log" 2>&1; then
    echo "firmware: no usable package lists on this system, fetching our own"
    own_lists update >"$work/log" 2>&1 || true # one unreachable source of several does not matter
    own_lists download "$package" >>"$work/log" 2>&1 || {
        tail -n 5 "$work/log" >&2
        fail "$package could not be fetched from the archives that this system is set up for"
    }
fi
set -- ./*.deb
[ -s "$1" ] || fail "apt-get has downloaded nothing"
dpkg -x "$1" "$work/unpacked" || fail "$1 cannot be unpacked"
cp "$work/unpacked/usr/share/$package/firmware.hex" "$target.new" || fail "there is no firmware in $1"
mv "$target.new" "$target"
echo "firmware: $target"
