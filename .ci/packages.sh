#!/bin/sh
# packages.sh NAME...: installs the Debian packages among these that are missing. Root only.
set -eu

missing=
for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
echo "packages: installing$missing" >&2

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made=
cleanup() {
    rm -f "$log"
    [ -z "$made" ] || rm -f "$policy"
}
trap cleanup EXIT
if [ ! -e "$policy" ]; then # no package may start a service: engine.sh starts what is needed
    made=1
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
retry='-q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3'
# shellcheck disable=SC2086
apt-get $retry update >"$log" 2>&1 || echo "packages: apt-get update complained, going on" >&2
# shellcheck disable=SC2086
apt-get $retry install --no-install-recommends $missing </dev/null >>"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    echo "packages: apt-get install failed" >&2
    exit 1
}
