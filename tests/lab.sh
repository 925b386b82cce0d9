#!/usr/bin/env bash
# Proves that the laboratory works: every check is a machine of its own.
set -euo pipefail

lab=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/scripts/lab
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0

# check NAME COMMAND...: COMMAND must succeed; a function of this file runs here.
check() {
    local name=$1
    shift
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        sed 's/^/        /' "$log"
    fi
}

machine() {
    timeout 60 "$lab" run "$@"
}

# inside FUNCTION: runs a function of this file in a machine.
inside() {
    machine bash -euxo pipefail -c "$(declare -f "$1" wait_for fails); $1"
}

# says TEXT COMMAND...: COMMAND, in a machine, must print TEXT.
says() {
    machine "${@:2}" 2>&1 | tee /dev/stderr | grep -qF -- "$1"
}

# wait_for SECONDS COMMAND...
wait_for() {
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < deadline))
        sleep 0.1
    done
}

# "! COMMAND" alone would not end a shell under set -e.
fails() {
    ! "$@"
}

# --- in a machine -----------------------------------------------------------------

automount_serves() {
    mkdir -p /data/{one,direct}
    touch /data/{one/indirect,direct/direct}
    echo '* -fstype=bind :/data/&' >/etc/auto.indirect
    echo '/direct/map -fstype=bind :/data/direct' >/etc/auto.direct
    printf '%s\n' '/indirect file:/etc/auto.indirect' '/- file:/etc/auto.direct' >/etc/auto.master
    automount --foreground &
    wait_for 10 mountpoint -q /direct/map
    timeout 10 test -e /indirect/one/indirect
    timeout 10 test -e /direct/map/direct
    mountpoint /indirect/one
    kill -TERM $!
    timeout 20 tail --pid=$! -f /dev/null
    fails grep -e '- autofs ' /proc/self/mountinfo
}

criu_restores() {
    mkdir /tmp/images
    setsid sleep 1000 </dev/null >/dev/null 2>&1 &
    criu dump --tree $! --images-dir /tmp/images
    wait $! || true
    fails kill -0 $!
    crit show /tmp/images/inventory.img
    criu restore --restore-detached --images-dir /tmp/images
    grep sleep "/proc/$!/comm"
}

podman_restores() {
    mkdir -p /tmp/image/{bin,dev,etc,proc,run,sys,tmp}
    cp /bin/busybox /tmp/image/bin/tail
    tar -C /tmp/image -c . | podman import - image
    for runtime in runc crun; do
        podman --runtime "$runtime" run --detach --name one image tail -f /dev/null
        podman --runtime "$runtime" container checkpoint --export /tmp/one.tar one
        podman rm one
        podman --runtime "$runtime" container restore --import /tmp/one.tar
        podman exec one tail /dev/null
        podman rm --force --time 0 one
    done
}

root_is_fresh() {
    test ! -e /mark
    touch /mark /src/mark 2>/dev/null || true
    test -e /mark
    test ! -e /src/mark
}

# --- on the host ------------------------------------------------------------------

status_is_forwarded() {
    local status=0
    machine bash -c 'exit 7' || status=$?
    ((status == 7)) || return 1
    status=0
    machine bash -c 'kill -TERM $$' || status=$?
    ((status == 128 + 15))
}

# Each sees its own mark only, while both are there.
two_at_once() {
    local one two
    machine bash -c 'echo 1 >/mark; sleep 2; grep -x 1 /mark' &
    one=$!
    machine bash -c 'echo 2 >/mark; sleep 2; grep -x 2 /mark' &
    two=$!
    wait "$one" && wait "$two"
}

# A machine whose run is terminated dies with it.
run_is_killed() {
    local out run
    out=$(mktemp -d)
    "$lab" run --out "$out" bash -c 'while sleep 0.1; do touch /out/alive; done' &
    run=$!
    wait_for 10 test -e "$out/alive"
    kill -TERM "$run"
    wait "$run" || true
    rm "$out/alive"
    sleep 0.5
    rmdir "$out" # not empty: somebody still touches it
    [[ -z $(find /sys/fs/cgroup -name "autofs-cr-lab.$run") ]]
}

"$lab" build >/dev/null
cp /proc/self/mountinfo "$log.mounts"
trap 'rm -f "$log" "$log.mounts"' EXIT

check "criu check"                         says 'Looks good.' criu check
check "automount 5.1.9"                    says 'version 5.1.9' automount -V
check "systemd"                            says 'systemd 257' systemctl --version
check "crit"                               says '4.1.1' crit --version
check "automount serves both kinds of map" inside automount_serves
check "criu dumps and restores a process"  inside criu_restores
check "podman restores: runc and crun"     inside podman_restores
check "every root is fresh: once"          inside root_is_fresh
check "every root is fresh: again"         inside root_is_fresh
check "two machines at once"               two_at_once
check "the status is forwarded"            status_is_forwarded
check "a killed run leaves nothing behind" run_is_killed
check "the host's mounts are unchanged"    diff "$log.mounts" /proc/self/mountinfo

echo "lab: $passed passed, $failed failed"
((failed == 0))
