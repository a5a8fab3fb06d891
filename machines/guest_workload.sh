# One round of a guest's workload on /dev/vda: four writers at once, each on a quarter of the disk, two through
# the page cache (so that many requests are in flight) and two past it; then a flush, and all is read back.
#
# What is written is /pattern, one MiB of noise, begun at another place for each round, part and MiB: a block
# that is lost, old, or in a wrong place is not what it should be.
written() { # PART MIB: the noise for that MiB in this round
    start=$(((round * 7919 + $1 * 104729 + $2 * 1299709) % 1048575 + 1))
    tail -c "+$start" /pattern
    head -c $((start - 1)) /pattern
}
quarter=$((${mib:-16} / 4))
for part in 0 1 2 3; do
    (
        flag=; [ $((part % 2)) = 0 ] || flag=oflag=direct
        at=0
        while [ $at -lt $quarter ]; do
            written $part $at >"/tmp/$part"
            dd if="/tmp/$part" of=/dev/vda bs=64k seek=$(((part * quarter + at) * 16)) conv=notrunc $flag 2>/dev/null ||
                echo "guest: part $part cannot be written in round $round"
            at=$((at + 1))
        done
    ) &
done
if grep -qs virtio /sys/class/misc/hw_random/rng_current; then # the hardware's random numbers, where there is such hardware
    dd if=/dev/hwrng of=/tmp/random bs=1k count=16 iflag=fullblock 2>/dev/null
    [ "$(wc -c </tmp/random)" = 16384 ] || { failed=$((failed + 1)); echo "guest: hwrng falls short in round $round"; }
fi
wait
sync
echo 3 >/proc/sys/vm/drop_caches
for part in 0 1 2 3; do
    at=0
    while [ $at -lt $quarter ]; do
        written $part $at >/tmp/want
        dd if=/dev/vda of=/tmp/got bs=64k skip=$(((part * quarter + at) * 16)) count=16 iflag=direct 2>/dev/null
        cmp -s /tmp/want /tmp/got || { failed=$((failed + 1)); echo "guest: MiB $at of part $part differs in round $round"; }
        at=$((at + 1))
    done
done
