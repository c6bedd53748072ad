# What a program leaves on a real dax device, by scrub policy. Words: the program daxtier, the device with its options, its name.
set -e
daxtier=$1 slow=$2 device=$3

# Whether the device holds the words, seen as whoever may open the node can see it.
left() {
    python3 - "$device" <<'PYTHON'
import mmap, os, sys
node = os.open(sys.argv[1], os.O_RDWR)
size = int(open('/sys/bus/dax/devices/%s/size' % os.path.basename(sys.argv[1])).read())
words = ' '.join(['very', 'secret', 'words']).encode()
print('left' if mmap.mmap(node, size).find(words) >= 0 else 'clean')
PYTHON
}
is_left() {
    seen=$(left)
    [ "$seen" = "$1" ] || { echo "$2: the device is $seen"; exit 1; }
}
cat >/tmp/secret.py <<'PYTHON'
import os, signal, sys
data = [b'very secret words' * 300 for i in range(4000)]
if sys.argv[1] == 'killed': os.kill(os.getpid(), signal.SIGKILL)
sys.exit(5)
PYTHON
run() {
    code=0
    $daxtier run --fast 64M --slow "$slow,scrub=$1" --policy preferred=slow -- python3 /tmp/secret.py "$2" || code=$?
    [ $code = "$3" ] || { echo "scrub=$1, $2: it returned $code"; exit 1; }
}
run on-claim ends 5
is_left left "scrub=on-claim leaves what was there until the next claim"
run on-release ends 5
is_left clean "scrub=on-release after an ordinary end"
run on-claim ends 5
run on-release killed 137
is_left clean "scrub=on-release after the program was killed"
echo "what programs leave is as their policy says"
