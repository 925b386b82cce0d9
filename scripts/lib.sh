# Shared by the scripts in this directory; to be sourced.
# shellcheck shell=bash

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# cargo_build ARGUMENT...: on a terminal cargo tells what it does, as the first time takes minutes.
cargo_build() {
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
    apt_install "${missing[@]}" 2>/dev/null || { apt-get -qq update && apt_install "${missing[@]}"; } ||
        die "cannot install ${missing[*]}"
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 install "$@" >&2
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
