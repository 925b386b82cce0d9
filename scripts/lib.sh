# Shared by the scripts in this directory; to be sourced.
# shellcheck shell=bash

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# cargo_build ARGUMENT...: on a terminal cargo tells what it does, as the first time takes minutes.
cargo_build() {
    # For the linker.
    command -v cc >/dev/null || ensure_packages gcc libc6-dev
    local quiet=(--quiet)
    [[ ! -t 2 ]] || quiet=()
    cargo build "${quiet[@]}" "$@"
}

# ensure_packages PACKAGE...: installs what is missing on this Debian machine.
ensure_packages() {
    local package missing=()
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "not root: please install ${missing[*]}"
    echo "installing ${missing[*]}" >&2
    # The lists may be absent or older than the mirror: then once more with fresh ones.
    apt_install "${missing[@]}" 2>/dev/null || { apt-get -qq -o Acquire::Retries=3 update && apt_install "${missing[@]}"; } ||
        die "cannot install ${missing[*]}"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install "$@" >&2
}

# The mirror that this machine's apt uses for Debian, in whatever format it is configured.
mirror() {
    local uri
    uri=$(configured_mirror)
    if [[ -z $uri ]]; then # perhaps apt has no lists yet
        apt-get -qq update >&2 || true
        uri=$(configured_mirror)
    fi
    echo "${uri:-http://deb.debian.org/debian}"
}

configured_mirror() {
    # shellcheck disable=SC2016 # apt-get fills these in
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)' \
        'Created-By: Packages' | sed -n '/|cdrom:/d; s/^Debian|Debian|main|//p' | head -n 1
}

# apart_begin DIR SUITE...: an apt with lists of its own, below DIR, for other suites of Debian: this machine's stay as they are.
apart_begin() {
    local dir=$1 suite
    shift
    ensure_packages debian-archive-keyring
    mkdir -p "$dir"/{state/lists/partial,cache/archives/partial}
    : >"$dir/status"
    for suite; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main"
    done >"$dir/sources"
    apart "$dir" apt-get update >&2
}

# apart DIR COMMAND...
apart() {
    local dir=$1 command=$2
    shift 2
    "$command" -qq -o Dir::Etc::SourceList="$dir/sources" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State="$dir/state" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Sandbox::User=root "$@"
}

# apart_unpack DIR TARGET PACKAGE/SUITE...: their files, below TARGET.
apart_unpack() {
    local dir=$1 target=$2 package
    shift 2
    mkdir -p "$target"
    (cd "$target" && apart "$dir" apt-get download "$@")
    for package in "$target"/*.deb; do
        dpkg-deb -x "$package" "$target"
        rm "$package"
    done
}

# apart_criu DIR TARGET SUITE: its CRIU and the libraries that the laboratory's suite lacks; /opt/criu/bin is for the PATH
# of a machine that has TARGET as /opt/criu. DIR knows SUITE and sid.
apart_criu() {
    apart_unpack "$1" "$2" "criu/$3" "libcompel1/$3" libnl-3-200/sid libnet9/sid
    mkdir -p "$2/bin"
    cat >"$2/bin/criu" <<'END'
#!/bin/sh
exec env LD_LIBRARY_PATH="$(echo /opt/criu/usr/lib/*-linux-gnu)" /opt/criu/usr/sbin/criu "$@"
END
    chmod +x "$2/bin/criu"
}
