# A guest with a console and nothing else to do (tv.what=console): says tv.lines numbered lines on it, takes
# tv.bytes meanwhile, says them back, and tells on its other console what it took. "ready" says that all it is
# sent from now on comes through unchanged; "done" that there is no more.
tries=0
while [ ! -c /dev/hvc0 ] && [ $tries -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
[ -c /dev/hvc0 ] || { echo "guest: there is no console"; poweroff -f; }
exec 3<>/dev/hvc0
busybox stty raw -echo <&3
echo "guest: ready"
echo ready >&3
awk -v "lines=$(value lines)" 'BEGIN { for (line = 1; line <= lines; line++) print line, "of", lines }' >&3 &
head -c "$(value bytes)" <&3 >/tmp/got
wait
cat /tmp/got >&3
echo done >&3
echo "guest: console took=$(sha256sum </tmp/got | cut -c1-64)"
exec 3>&-
poweroff -f
