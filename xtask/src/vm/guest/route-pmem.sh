# The region's namespace becomes one in devdax mode.
ndctl create-namespace -f -m devdax -e namespace0.0 >/tmp/namespace.log 2>&1 ||
    ndctl create-namespace -m devdax -r region0 >/tmp/namespace.log 2>&1 || cat /tmp/namespace.log
