#!/bin/sh
# Makes the guests that boards boot: Debian's cloud kernel for QEMU and User-Mode Linux, each with an initial RAM
# file system of busybox and the workload in machines/guest_*.sh. Everything lands in .cache/guests; needs
# apt-get and dpkg, but neither root nor the system's package lists.
# Usage: sh machines/guests.sh [CACHE_FOLDER]
set -eu

cache=$(mkdir -p "${1:-.cache}" && cd "${1:-.cache}" && pwd)
here=$(cd "$(dirname "$0")/.." && pwd)
target=$cache/guests
python=${PYTHON:-python3}

fail() {
    echo "guests: $*" >&2
    exit 1
}

for tool in apt-get apt-cache dpkg; do
    command -v "$tool" >/dev/null || fail "$tool is missing: the guests come from a Debian archive"
done

# Debug::NoLocking: nothing of the system is written, so nothing has to be locked.
work=$cache/apt
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/guests" "$target"
apt_of_our_own() {
    tool=$1
    shift
    "$tool" -q -o Dir::State="$work/state" -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
kernel_package() { sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1; }

fetch() { # PACKAGE: unpacked below $work/unpacked/PACKAGE
    [ -d "$work/unpacked/$1" ] && return
    cd "$work/guests"
    rm -f ./*.deb
    apt-get -q -o APT::Sandbox::User= download "$1" >"$work/log" 2>&1 ||
        apt_of_our_own apt-get download "$1" >>"$work/log" 2>&1 || {
        tail -n 5 "$work/log" >&2
        fail "$1 could not be fetched from the archives that this system is set up for"
    }
    set -- "$1" ./*.deb
    rm -rf "$work/unpacked/new"
    dpkg -x "$2" "$work/unpacked/new" || fail "$2 cannot be unpacked"
    mv "$work/unpacked/new" "$work/unpacked/$1"
}

mkdir -p "$work/unpacked"
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | kernel_package)
if [ -z "$kernel" ]; then
    echo "guests: no usable package lists on this system, fetching our own"
    apt_of_our_own apt-get update >"$work/log" 2>&1 || true # one unreachable source of several does not matter
    kernel=$(apt_of_our_own apt-cache depends linux-image-cloud-amd64 | kernel_package)
fi
[ -n "$kernel" ] || fail "there is no linux-image-cloud-amd64 in the archives that this system is set up for"

fetch "$kernel"
fetch busybox-static
fetch user-mode-linux
busybox=$work/unpacked/busybox-static/bin/busybox
uml_modules=$(ls -d "$work/unpacked/user-mode-linux/usr/lib/uml/modules"/*)

cd "$here"
initramfs() { # OUTPUT MODULES MODULE...
    output=$1 modules=$2
    shift 2
    for name in "$@"; do set -- "$@" --module "$name"; shift; done
    "$python" -m machines.initramfs "$output.new" --busybox "$busybox" --modules "$modules" "$@" \
        --script machines/guest_init.sh --script machines/guest_workload.sh --script machines/guest_net.sh --script machines/guest_console.sh
    mv "$output.new" "$output"
}
cp "$work/unpacked/$kernel/boot/vmlinuz-"* "$target/vmlinuz"
cp "$work/unpacked/user-mode-linux/usr/bin/linux.uml" "$target/linux.uml"
initramfs "$target/initramfs-qemu.gz" "$work/unpacked/$kernel/lib/modules" virtio_pci virtio_blk virtio-rng virtio_net
initramfs "$target/initramfs-uml.gz" "$uml_modules" virtio_blk virtio_net virtio_console
for board in qemu uml; do # the disks of config/*-linux.yaml; what is in them does not matter
    [ -e "$target/$board-disk.img" ] || truncate -s 16M "$target/$board-disk.img"
done
echo "guests: $target"
