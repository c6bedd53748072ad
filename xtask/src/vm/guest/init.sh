#!/bin/busybox sh
# The guest's first process. Words of the kernel's command line that it understands:
#   vm.modules=a,b   modules to load, in order
#   vm.route=NAME    the script in /route that makes the dax device
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug
ip link set lo up
hostname guest

modules= route=
for word in $(cat /proc/cmdline); do
    case $word in vm.modules=*) modules=${word#vm.modules=} ;; vm.route=*) route=${word#vm.route=} ;; esac
done
for module in virtio_pci 9pnet_virtio 9p; do modprobe $module 2>/dev/null; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /share || echo "VM: no /share"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose hostfs /host || echo "VM: no /host"
for module in $(echo $modules | tr , ' '); do
    modprobe $module 2>/tmp/refusal || [ -d /sys/module/$module ] || echo "VM: modprobe $module: $(cat /tmp/refusal)"
done
[ -z "$route" ] || . /route/$route

echo "VM: up $(cut -d' ' -f1 /proc/uptime) s, $(uname -r)"
setsid in-host </dev/null 2>&1
echo "VM: exit $? at $(cut -d' ' -f1 /proc/uptime) s"
sync
umount /share
poweroff -f
