#!/usr/bin/env bash
# The proof that the two commands of README.md work on a fresh machine: a minimal Debian 12 in FOLDER (debootstrap, root needed),
# the committed tree without history, and `./run demo </dev/null` and `./run test` inside. The host's apt proxy settings,
# certificates and DNS come along.
#   tools/try_fresh_debian.sh FOLDER [demo|test ...]
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
[[ $# -ge 1 && $EUID -eq 0 ]] || { echo "usage (as root): $0 FOLDER [demo|test ...]" >&2 && exit 2; }
folder=$1
shift
commands=("${@:-demo}")
[[ $# -gt 0 ]] || commands=(demo test)
mirror=${FATHOM_DEBIAN_MIRROR:-http://deb.debian.org/debian}

if [[ ! -e $folder/etc/debian_version ]]; then
    mkdir -p "$folder"
    debootstrap --variant=minbase bookworm "$folder" "$mirror"
fi
for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt /etc/apt/apt.conf; do
    [[ -f $file ]] && install -D -m 644 "$file" "$folder$file"
done
for file in /etc/apt/apt.conf.d/*; do
    if grep -qiE '^[^/#]*(proxy|https|check-valid|check-date)' "$file"; then install -D -m 644 "$file" "$folder$file"; fi
done

rm -rf "$folder/home/fathom" && mkdir -p "$folder/home/fathom"
git -C "$root" archive HEAD | tar -x -C "$folder/home/fathom"
cleanup() {
    for inner in proc dev; do mountpoint -q "$folder/$inner" && umount -l "$folder/$inner"; done
    return 0
}
trap cleanup EXIT
mountpoint -q "$folder/proc" || mount -t proc proc "$folder/proc"
mountpoint -q "$folder/dev" || mount --rbind --make-rslave /dev "$folder/dev"

for command in "${commands[@]}"; do
    began=$SECONDS
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
        http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" \
        chroot "$folder" /bin/bash -c "cd /home/fathom && ./run $command </dev/null"
    echo "fresh Debian: ./run $command took $((SECONDS - began)) s"
done
