#!/bin/sh
# The init of a guest: loads the modules, finds the disk, runs its workload, says how it went, powers off.
# What it is to do comes on the kernel's command line: tv.rounds (how often), tv.mib (of the disk), tv.what; a
# guest whose tv.what is net needs no disk.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
while read -r module; do insmod "/modules/$module" || echo "guest: cannot load $module"; done </modules/order

value() { tr ' ' '\n' </proc/cmdline | grep "^tv.$1=" | cut -d= -f2; }
rounds=$(value rounds) mib=$(value mib) what=$(value what)
[ "$what" != net ] || . /guest_net.sh
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
[ -b /dev/vda ] || { echo "guest: there is no disk"; poweroff -f; }
echo "guest: ready, $(cat /sys/block/vda/size) sectors"

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
io_errors=$(dmesg | grep -c "I/O error")
disk=$(dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum | cut -c1-64)
echo "guest: io_errors=$io_errors failed=$failed disk=$disk"
[ "$what" = reboot ] && reboot -f
[ "$what" = reboot ] && reboot -f
poweroff -f
