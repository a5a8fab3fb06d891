#!/bin/sh
# fio and the libraries that it is linked with, for a guest, as a cpio archive in .cache/guests. Needs no root:
# Debian's packages are fetched and unpacked, not installed. Run by `make bench`, which goes on without it.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$here/.cache/apt/fio
target=$here/.cache/guests/fio.cpio

fail() {
    echo "fio: $*" >&2
    exit 1
}

[ ! -e "$target" ] || exit 0
for tool in apt-get apt-cache dpkg; do
    command -v "$tool" >/dev/null || fail "$tool is missing: it comes from a Debian archive"
done
[ "$(dpkg --print-architecture)" = amd64 ] || fail "the guests are of amd64"
mkdir -p "$work/debs" "$work/root" "$(dirname "$target")"
without="--no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances"
# shellcheck disable=SC2086
packages=$(apt-cache depends --recurse $without fio 2>/dev/null | grep -E '^(fio|lib[^:]*|zlib1g)$' | sort -u)
[ -n "$packages" ] || fail "it is not in the archives that this system is set up for"
cd "$work/debs"
# shellcheck disable=SC2086
apt-get -q -o APT::Sandbox::User= download $packages >"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    fail "it could not be fetched from the archives that this system is set up for"
}
for deb in ./*.deb; do dpkg -x "$deb" "$work/root" || fail "$deb cannot be unpacked"; done
cd "$here"
"${PYTHON:-python3}" -m benchmarks.disk_tools "$work/root" "$target.new"
mv "$target.new" "$target"
rm -rf "$work"
echo "fio: $target"
