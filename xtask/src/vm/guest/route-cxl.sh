# Every CXL memory device becomes a region of its own, under the root decoder that reaches it, with a dax device in devdax mode.
regions=0
for memory in /sys/bus/cxl/devices/mem*; do
    for decoder in /sys/bus/cxl/devices/decoder0.*; do
        cxl create-region -t ram -m -d $(basename $decoder) -w 1 $(basename $memory) >>/tmp/region.log 2>&1 || continue
        regions=$((regions + 1))
        break
    done
done
for try in $(seq 25); do
    [ $(ls /sys/bus/dax/devices | wc -l) -ge $regions ] && break
    sleep 0.2
done
for device in /sys/bus/dax/devices/dax*; do
    [ -e $device/driver ] || echo $(basename $device) >/sys/bus/dax/drivers/device_dax/new_id
done
[ -e /dev/dax0.0 ] || { echo "VM: no dax device"; cat /tmp/region.log; }
