#!/bin/sh
# The init of a guest: loads the modules, finds the disk, runs its workload, says how it went, powers off.
# What it is to do comes on the kernel's command line: tv.rounds (how often), tv.mib (of the disk), tv.what;
# tv.kib (of one request at most, so that many are in flight);
# tv.boots (how often it boots: all but the last end in a reboot; the count stands behind those MiB). A
# guest whose tv.what is net or console needs no disk.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
while read -r module; do insmod "/modules/$module" || echo "guest: cannot load $module"; done </modules/order

value() { tr ' ' '\n' </proc/cmdline | grep "^tv.$1=" | cut -d= -f2; }
rounds=$(value rounds) mib=$(value mib) what=$(value what) boots=$(value boots)
case $what in net | console) . "/guest_$what.sh" ;; esac
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
[ -b /dev/vda ] || { echo "guest: there is no disk"; poweroff -f; }
was=$(cat /sys/block/vda/size) # before anybody hears that we are ready, and lets it grow
echo "guest: ready, $was sectors"

kib=$(value kib)
[ -z "$kib" ] || echo "$kib" >/sys/block/vda/queue/max_sectors_kb

if [ "$what" = shell ]; then
    setsid cttyhack sh
    poweroff -f
fi

if [ "$what" = grow ]; then # the disk does, and what is new of it is used
    now=$was
    while [ "$now" = "$was" ]; do sleep 0.1; now=$(cat /sys/block/vda/size); done
    dd if=/pattern of=/dev/vda bs=512 seek=$((now - 8)) count=8 oflag=direct conv=notrunc 2>/dev/null &&
        echo "guest: grown from $was to $now sectors"
    poweroff -f
fi

# /proc/sys/vm: little memory may be dirty, so that writing goes on while reading does.
echo 4194304 >/proc/sys/vm/dirty_bytes
failed=0
round=1
while [ "$round" -le "${rounds:-1}" ]; do
    . /guest_workload.sh
    echo "guest: round $round of ${rounds:-1} done, failed=$failed"
    round=$((round + 1))
done
sync
if [ -n "$boots" ]; then
    boot=$(dd if=/dev/vda bs=512 skip=$((mib * 2048)) count=1 iflag=direct 2>/dev/null | tr -dc 0-9)
    boot=$((${boot:-0} + 1))
    echo "guest: boot $boot of $boots, failed=$failed"
    if [ $boot -lt "$boots" ]; then
        { echo $boot; dd if=/dev/zero bs=512 count=1 2>/dev/null; } | head -c 512 >/tmp/boot
        dd if=/tmp/boot of=/dev/vda bs=512 seek=$((mib * 2048)) conv=notrunc oflag=direct 2>/dev/null
        [ $failed = 0 ] && reboot -f
    fi
fi
io_errors=$(dmesg | grep -c "I/O error")
disk=$(dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum | cut -c1-64)
echo "guest: io_errors=$io_errors failed=$failed disk=$disk"
poweroff -f
