#!/bin/sh
# engine.sh: from a bare Debian 12 to two Docker Engines and an image registry. Root only; run it as often as you like.
#
#   the usual socket                   Docker Engine with the containerd image store; one that runs is used as it is
#   /run/theory-ci/classic.sock        Docker Engine with the classic image store
#   127.0.0.1:5000                     an image registry without authentication
#   /proc/sys/fs/binfmt_misc           arm64 programs run by emulation (on amd64)
#
# No systemd, no package host named here: the newer release comes from the mirror that apt uses already.
set -eu

HERE=$(cd "$(dirname "$0")" && pwd)
SUITE=trixie # Debian 12 itself has neither buildx nor an engine with the containerd store
REGISTRY=127.0.0.1:5000
RUN=/run/theory-ci
LIB=/var/lib/theory-ci
LOG=/var/log/theory-ci
CLASSIC=unix://$RUN/classic.sock
CLASSIC_BRIDGE=docker-classic
CLASSIC_NETWORK=172.31.255

say() { echo "engine: $*" >&2; }
die() { say "$*"; exit 1; }

have_engine() {
    command -v dockerd >/dev/null && command -v docker-registry >/dev/null && docker buildx version >/dev/null 2>&1 &&
        [ "$(dockerd --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -ge 24 ]
}

apt_targets() { apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)|' 'Created-By: Packages'; }

add_suite() {
    ! apt_targets | grep -q "|$SUITE|main|" || return 0
    . /etc/os-release
    uri=$(apt_targets | grep "|$VERSION_CODENAME|main|" | head -n 1 | cut -d '|' -f 1)
    [ -n "$uri" ] || die "apt has no source for $VERSION_CODENAME main"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
        "$uri" "$SUITE" /usr/share/keyrings/debian-archive-keyring.gpg >/etc/apt/sources.list.d/theory-ci.sources
    # Of the newer release nothing but the engine's own packages.
    printf 'Package: *\nPin: release n=%s\nPin-Priority: -10\n\n' "$SUITE" >/etc/apt/preferences.d/theory-ci
    printf 'Package: docker.io docker-cli docker-buildx containerd\nPin: release n=%s\nPin-Priority: 990\n' "$SUITE" \
        >>/etc/apt/preferences.d/theory-ci
}

install_engine() {
    add_suite
    sh "$HERE/packages.sh" docker.io docker-cli docker-buildx containerd docker-registry runc iptables
    have_engine || die "installed, but dockerd >= 24, buildx or docker-registry is missing"
}

alive() { # alive PIDFILE PROGRAM: a pid counts only while it is the program it was written for
    pid=$(cat "$1" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ "$(basename "$(readlink "/proc/$pid/exe" 2>/dev/null)")" = "$2" ]
}

stop() { # stop PIDFILE PROGRAM
    alive "$1" "$2" || return 0
    kill "$pid"
    for _ in $(seq 100); do [ -d "/proc/$pid" ] || return 0; sleep 0.2; done
    kill -9 "$pid"
}

await() { # await NAME PID COMMAND...: until COMMAND succeeds; gives up when PID died, or after 30 s
    name=$1 awaited=$2
    shift 2
    for _ in $(seq 150); do
        if "$@" >/dev/null 2>&1; then say "$name is up"; return 0; fi
        kill -0 "$awaited" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 15 "$LOG/$name.log" >&2
    die "$name did not come up"
}

launch() { # launch NAME COMMAND...: in the background, detached, without this script's lock
    name=$1
    shift
    setsid "$@" >"$LOG/$name.log" 2>&1 9>&- </dev/null &
}

store_is_containerd() { docker "$@" info -f '{{.DriverStatus}}' | grep -q containerd.snapshotter; }

start_engine() {
    if docker info >/dev/null 2>&1; then
        store_is_containerd || die "a Docker Engine with the classic image store runs; stop it first"
        return 0
    fi
    stop /run/docker.pid dockerd
    # dockerd refuses to start while its pid file names any live process, and a pid is soon used again.
    rm -f /run/docker.pid /run/docker.sock
    alive /run/docker/containerd/containerd.pid containerd || rm -f /run/docker/containerd/containerd.pid
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
    echo '{"features": {"containerd-snapshotter": true}, "log-opts": {"max-size": "10m", "max-file": "2"}}' \
        >"$RUN/engine.json"
    launch engine dockerd --config-file "$RUN/engine.json"
    await engine $! docker info
}

classic_network() { # own bridge, own rules: a second dockerd that writes iptables would erase the first one's chains
    ip link show "$CLASSIC_BRIDGE" >/dev/null 2>&1 || ip link add "$CLASSIC_BRIDGE" type bridge
    ip address replace "$CLASSIC_NETWORK.1/24" dev "$CLASSIC_BRIDGE"
    ip link set "$CLASSIC_BRIDGE" up
    rule -t nat POSTROUTING -s "$CLASSIC_NETWORK.0/24" ! -o "$CLASSIC_BRIDGE" -j MASQUERADE
    rule -t filter FORWARD -i "$CLASSIC_BRIDGE" -j ACCEPT
    rule -t filter FORWARD -o "$CLASSIC_BRIDGE" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
}

rule() { # rule -t TABLE CHAIN SPECIFICATION...: first in its chain, once
    table=$2 chain=$3
    shift 3
    iptables -t "$table" -C "$chain" "$@" 2>/dev/null || iptables -t "$table" -I "$chain" "$@"
}

start_classic() {
    if docker -H "$CLASSIC" info >/dev/null 2>&1; then
        ! store_is_containerd -H "$CLASSIC" || die "the engine at $CLASSIC has the containerd image store"
        return 0
    fi
    stop "$RUN/classic.pid" dockerd
    rm -f "$RUN/classic.pid" "$RUN/classic.sock"
    alive "$RUN/classic/containerd/containerd.pid" containerd || rm -f "$RUN/classic/containerd/containerd.pid"
    classic_network
    echo '{"features": {"containerd-snapshotter": false}, "log-opts": {"max-size": "10m", "max-file": "2"}}' \
        >"$RUN/classic.json"
    launch classic dockerd --config-file "$RUN/classic.json" --host "$CLASSIC" --pidfile "$RUN/classic.pid" \
        --data-root "$LIB/classic" --exec-root "$RUN/classic" --bridge "$CLASSIC_BRIDGE" --iptables=false
    await classic $! docker -H "$CLASSIC" info
}

registry_answers() { curl -fs -o /dev/null --noproxy '*' "http://$REGISTRY/v2/"; }

start_registry() {
    ! registry_answers || return 0
    cat >"$RUN/registry.yml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $LIB/registry}
  delete: {enabled: true}
http: {addr: "$REGISTRY"}
YAML
    launch registry docker-registry serve "$RUN/registry.yml"
    await registry $! registry_answers
}

emulate_arm64() {
    [ "$(uname -m)" = x86_64 ] || return 0
    formats=/proc/sys/fs/binfmt_misc
    [ -e $formats/register ] || mount -t binfmt_misc none $formats
    [ ! -e $formats/qemu-aarch64 ] || return 0
    # F: the interpreter is opened now, so that containers without it can run arm64 programs too.
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:OCF" >$formats/register
    say "arm64 programs run by emulation"
}

[ "$(id -u)" = 0 ] || die "needs root"
mkdir -p "$RUN" "$LIB" "$LOG"
exec 9>"$RUN/lock"
flock -w 300 9 || die "another engine.sh runs"
sh "$HERE/packages.sh" curl iproute2 qemu-user-static
have_engine || install_engine
start_engine
start_classic
start_registry
emulate_arm64
say "ready"
