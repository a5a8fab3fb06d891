# A guest with a network card and nothing else to do (tv.what=net): takes what the host gives at tv.down, sends
# it back to tv.up, as often as tv.rounds says, and tells what it took. The addresses are tv.ip and tv.host.
host=$(value host)
tries=0
while [ ! -d /sys/class/net/eth0 ] && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
[ -d /sys/class/net/eth0 ] || { echo "guest: there is no card"; poweroff -f; }
busybox ip link set dev lo up
busybox ip address add "$(value ip)/24" dev eth0
busybox ip link set dev eth0 up
echo "guest: ready, $(cat /sys/class/net/eth0/address)"

failed=0
round=1
while [ "$round" -le "${rounds:-1}" ]; do
    busybox nc "$host" "$(value down)" </dev/null >/tmp/got || failed=$((failed + 1))
    busybox nc "$host" "$(value up)" </tmp/got >/dev/null || failed=$((failed + 1))
    echo "guest: round $round of ${rounds:-1} done, failed=$failed took=$(sha256sum </tmp/got | cut -c1-64)"
    round=$((round + 1))
done
# What the driver calls an error is a buffer that came back with something else than a frame.
echo "guest: net failed=$failed errors=$(cat /sys/class/net/eth0/statistics/rx_errors)"
sync
poweroff -f
