#!/bin/sh
# Runs /share/command in the host's file system, in the checkout. The guest's own root is at /mnt there, and its tools are
# on the PATH.
mkdir -p /tmp/share /run/guest
mount --bind /share /tmp/share
mount --bind / /host/mnt
# A checkout below /tmp stays in sight.
folder=$(cat /share/folder)
case $folder in /tmp/*) mkdir -p "$folder" && mount --bind "/host$folder" "$folder" ;; esac
for folder in proc sys dev tmp run; do mount --rbind /$folder /host/$folder; done
mount --bind /sys /host/mnt/sys
for tool in cxl ndctl daxctl numactl; do
    printf '#!/bin/sh\nexec /mnt/lib64/ld-linux-x86-64.so.2 --library-path /mnt/lib/x86_64-linux-gnu /mnt/usr/bin/%s "$@"\n' \
        $tool >/run/guest/$tool
done
for tool in modprobe rmmod; do
    printf '#!/bin/sh\nexec chroot /mnt /bin/%s "$@"\n' $tool >/run/guest/$tool
done
chmod +x /run/guest/*
export HOME=/tmp PATH=/run/guest:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec chroot /host /bin/bash -c 'cd "$(cat /tmp/share/folder)" && . /tmp/share/command'
