# Real programs over a real dax device. Words: the program daxtier, the device with its options, its name.
set -e
daxtier=$1 slow=$2 device=$3

# A running program leaves the device when it is asked, with everything that it has.
cat >/tmp/program.py <<'PYTHON'
import os, time
data = [bytes([i % 251]) * 5000 for i in range(8000)]
open('/tmp/ready', 'w').close()
while not os.path.exists('/tmp/go'): time.sleep(0.05)
print('whole' if all(d == bytes([i % 251]) * 5000 for i, d in enumerate(data)) else 'damaged')
PYTHON
rm -f /tmp/ready /tmp/go
$daxtier run --fast 256M --slow "$slow" --policy preferred=slow -- python3 /tmp/program.py >/tmp/said &
program=$!
until [ -e /tmp/ready ]; do
    kill -0 $program 2>/dev/null || { wait $program; echo "the program ended with $? before it was ready"; exit 1; }
    sleep 0.2
done
$daxtier list
$daxtier drain --remove "$device" $program
if $daxtier list | grep -q "pid $program"; then echo "the claims were not given back"; exit 1; fi
touch /tmp/go
wait $program
[ "$(cat /tmp/said)" = whole ] || { echo "the program says $(cat /tmp/said)"; exit 1; }

# A device that the administrator has released and that appears is offered to a running program, and is used when it is added.
cp -a /etc /tmp/etc
mount --bind /tmp/etc /etc
case $slow in *allow-persistent*) $daxtier allow --allow-persistent "$device" ;; *) $daxtier allow "$device" ;; esac
basename "$device" >/sys/bus/dax/drivers/device_dax/unbind
rm -f /tmp/ready /tmp/go
DAXTIER_CONTROL=on $daxtier run --fast 32M --slow emulated:64M -- python3 /tmp/program.py >/tmp/said 2>/tmp/offered &
program=$!
until [ -e /tmp/ready ]; do
    kill -0 $program 2>/dev/null || { cat /tmp/offered; exit 1; }
    sleep 0.2
done
basename "$device" >/sys/bus/dax/drivers/device_dax/bind
for try in $(seq 100); do grep -q "daxtier add $slow $program" /tmp/offered && break; sleep 0.2; done
cat /tmp/offered
offer=$(sed -n 's/.*to use it: daxtier //p' /tmp/offered)
[ "$offer" = "add $slow $program" ] || { echo "the device was not offered"; exit 1; }
$daxtier $offer
$daxtier drain emulated:64M $program
$daxtier list | grep "pid $program" || { echo "the device that was added is not used"; exit 1; }
touch /tmp/go
wait $program
[ "$(cat /tmp/said)" = whole ] || { echo "the program says $(cat /tmp/said)"; exit 1; }
$daxtier allow --remove "$device"

# redis, where huge pages are always used, and from a parent that has switched them off for its children.
command -v redis-server >/dev/null || { echo "skipped: redis is not installed"; exit 0; }
serve() {
    "$@" $daxtier run --fast 64M --slow "$slow" --policy preferred=slow --stats=/tmp/redis.json -- \
        redis-server --port 6399 --bind 127.0.0.1 --save '' --appendonly no >/tmp/redis.log 2>&1 &
    server=$!
    until redis-cli -p 6399 ping 2>/dev/null | grep -q PONG; do
        kill -0 $server || { cat /tmp/redis.log; exit 1; }
        sleep 0.2
    done
    redis-benchmark -p 6399 -t set -n 10000 -r 100000 -d 4000 -P 16 -q | tr '\r' '\n' | grep 'per second'
    redis-cli -p 6399 set own "$(seq -s, 1000)" >/dev/null
    [ "$(redis-cli -p 6399 get own)" = "$(seq -s, 1000)" ] || { echo "a value came back damaged"; exit 1; }
    redis-cli -p 6399 shutdown nosave || true
    wait $server || { echo "redis-server ended with $?"; cat /tmp/redis.log; exit 1; }
    python3 -c 'import json
tiers = json.load(open("/tmp/redis.json"))["tiers"]
print([(tier["kind"], tier["peak_bytes"]) for tier in tiers])
assert tiers[1]["kind"] == "dax" and tiers[1]["peak_bytes"] > 24 << 20'
}
echo always >/sys/kernel/mm/transparent_hugepage/enabled
serve env
cat >/tmp/without_huge_pages.py <<'PYTHON'
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE
os.execvp(sys.argv[1], sys.argv[1:])
PYTHON
serve python3 /tmp/without_huge_pages.py
