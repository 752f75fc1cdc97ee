#!/usr/bin/env bash
# debian.sh: unpack packages of a Debian release into a folder, from the mirror that apt is set up with.
# Nothing is installed, what is installed does not matter, and it needs no root. Dependencies are not
# looked for: name each package.
#
# usage: hack/debian.sh FOLDER RELEASE[/COMPONENT] PACKAGE...
set -euo pipefail
folder=$(realpath -m "$1") release=${2%%/*} component=main
[[ $2 != */* ]] || component=${2#*/}
shift 2

die() {
	echo "debian: $*" >&2
	exit 1
}
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || die "packages of Debian's $release ($*) need apt-get and dpkg-deb, which are not here"
keyring=$(find /usr/share/keyrings -name 'debian-archive-keyring.*' 2>/dev/null | head -1)
[ -n "$keyring" ] || die "Debian's keys are not in /usr/share/keyrings; install debian-archive-keyring"

mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9 # another one may be at it
[ -e "$folder" ] && exit 0
work=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,debs,root}
: >"$work/status"
apt() {
	apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State="$work/state" -o Dir::State::status="$work/status" \
		-o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3 "$@"
}

# Every release that apt is set up with names a mirror; Debian's are those that its keys have signed.
found=
for mirror in $(apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/[a-z]*/InRelease'.*|\1|p" | sort -u); do
	echo "deb [signed-by=$keyring] $mirror $release $component" >"$work/sources.list"
	if apt update --error-on=any 2>"$work/error"; then
		found=$mirror
		break
	fi
done
[ -n "$found" ] || die "no mirror that apt is set up with has Debian's $release: $(cat "$work/error" 2>/dev/null)"
(cd "$work/debs" && apt download "$@") || die "$release has not all of: $*"
for d in "$work"/debs/*.deb; do dpkg-deb -x "$d" "$work/root"; done
mv "$work/root" "$folder"
