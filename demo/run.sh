#!/usr/bin/env bash
# The demo: layers in, container out, a new image back.
#
#   demo/run.sh [IMAGE]     an archive, an OCI layout or a registry reference;
#                           without one, an image is made of Debian packages (and cached)
#
# Everything happens below one new directory, which is unmounted and removed at the end,
# also after a failure or Ctrl-C. Nothing on the machine is changed.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
vellum_bin=${VELLUM:-$here/target/release/vellum}
image=${1:-}

bold="" dim="" reset=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\033[1m' dim=$'\033[2m' reset=$'\033[0m'
fi
number=0
step() { # a title and the words that explain it
  number=$((number + 1))
  printf '\n%s%d. %s%s\n' "$bold" "$number" "$1" "$reset"
  shift
  printf '   %s\n' "$@"
}
show() { # a command as the reader would type it, then what it prints
  printf '%s   $ %s%s\n' "$dim" "$*" "$reset"
}
indent() { sed 's/^/     /'; }
vellum() { "$vellum_bin" --root "$root/store" --run-dir "$root/run" "$@"; }
typed() { # shows and runs a vellum command
  show "vellum $*"
  vellum "$@" 2>&1 | indent
}
seconds() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(seconds)" 'BEGIN { printf "%.2f s", b - a }'; }

root=$(mktemp -d "${TMPDIR:-/tmp}/vellum-demo.XXXXXX")
finish() {
  status=$?
  set +e
  vellum umount --all >/dev/null 2>&1
  if [ "$(id -u)" = 0 ]; then
    rm -rf --one-file-system "$root"
  else # files of other owners in the user namespace
    vellum unshare rm -rf --one-file-system "$root/store" >/dev/null 2>&1
    rm -rf --one-file-system "$root"
  fi
  [ "$status" = 0 ] || printf '\nThe demo stopped with status %s; its directory was removed.\n' "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

who="root"
[ "$(id -u)" = 0 ] || who="a plain user"
printf '%sVellum, as %s, in %s%s\n' "$bold" "$who" "$root" "$reset"

made=""
if [ -z "$image" ]; then
  step "An image to work with" \
    "Ten layers of Debian packages (git, perl, python3, gcc) and of what layered file" \
    "systems get wrong: hard links, devices, capabilities, whiteouts, a large file."
  show "scripts/demo-image.py"
  image=$("$here/scripts/demo-image.py")
  made=yes
  printf '     %s, %s MiB\n' "${image#"$here"/}" "$(($(stat -c %s "$image") >> 20))"
fi

step "Load it" \
  "Layers are unpacked side by side, straight into place; every digest is checked on" \
  "the way. A layer appears in the store when all of it is on disk, or not at all."
begin=$(seconds)
if [ -e "$image" ]; then
  typed load "$image"
else
  typed pull "$image"
fi
printf '     (%s)\n' "$(since "$begin")"
typed images
name=$(vellum images --ids | head -n 1)
step "Where its layers come from" "The history kept in the image, one line a layer."
typed history "$name"

step "Make a container" \
  "A container is one more layer, an empty writable one. The image is not copied."
begin=$(seconds)
typed create --name demo "$name"
printf '     (%s)\n' "$(since "$begin")"

step "Mount it" "The kernel shows all layers as one tree, the container's on top."
begin=$(seconds)
show "vellum mount demo"
vellum mount demo >"$root/mounted"
tree=$(tail -n 1 "$root/mounted")
printf '     %s\n     (%s)\n' "$tree" "$(since "$begin")"

# A plain user's mount lives in a namespace of its own: commands on the tree join it.
inside() {
  if [ "$(id -u)" = 0 ]; then "$@"; else vellum unshare "$@"; fi
}
show "ls $tree"
inside ls "$tree" | tr '\n' ' ' | fold -s -w 72 | indent
echo
if [ -n "$made" ]; then
  echo
  echo "   Some of what survived ten layers: one inode with several names, a device, a name"
  echo "   that is not UTF-8, and a directory whose old content is hidden."
  show "ls -la odd/links odd/dev odd/opaque"
  inside sh -c "cd '$tree/odd' && ls -la links dev opaque" | indent
fi

step "Write to it" \
  "A new file, a change, a removal and a renamed directory. All of it lands in the" \
  "container's own layer; the image below is never touched."
script='cd "$1"
mkdir -p demo && echo "written through the mount" > demo/note
[ ! -e etc/passwd ] || echo "demo:x:4242:4242::/:/bin/sh" >> etc/passwd
[ ! -e etc/hosts ] || rm etc/hosts
[ ! -d usr/share/perl ] || mv usr/share/perl usr/share/perl-moved 2>/dev/null || true'
printf '%s\n' 'echo "written through the mount" > demo/note' 'echo demo:x:4242... >> etc/passwd' 'rm etc/hosts' \
  'mv usr/share/perl usr/share/perl-moved' | sed "s/^/${dim}   \$ /; s/\$/${reset}/"
inside sh -ec "$script" sh "$tree"

step "What changed?" \
  "Read from the container's layer alone: the cost is that of the changes, not of the tree." \
  "A added, C changed, D deleted, as Docker prints it."
begin=$(seconds)
show "vellum diff demo"
vellum diff demo >"$root/diff"
took=$(since "$begin")
head -n 14 "$root/diff" | indent
lines=$(wc -l <"$root/diff")
[ "$lines" -le 14 ] || printf '     ... %s lines in all\n' "$lines"
printf '     (%s)\n' "$took"

step "Commit it" "The changes become an image of their own: the old layers and one more."
typed commit --message "changed in the demo" demo vellum-demo:changed
typed images

step "Save it" \
  "The new image as the archive that docker, podman and skopeo read. Layers that were" \
  "loaded go out byte for byte as they came in: the same digests."
typed save --output "$root/changed.tar" vellum-demo:changed
if [ -n "$made" ]; then
  show "compare the layers of both archives"
  python3 - "$image" "$root/changed.tar" <<'PYTHON' | indent
import hashlib, json, sys, tarfile
def layers(path):
    with tarfile.open(path) as tar:
        names = json.load(tar.extractfile("manifest.json"))[0]["Layers"]
        found = []
        for name in names:
            member = tar.getmember(name)
            while member.issym() or member.islnk():
                import posixpath
                at = posixpath.dirname(member.name) if member.issym() else ""
                member = tar.getmember(posixpath.normpath(posixpath.join(at, member.linkname)))
            file, digest = tar.extractfile(member), hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            found.append(digest.hexdigest())
        return found
before, after = layers(sys.argv[1]), layers(sys.argv[2])
assert after[: len(before)] == before, "a layer changed on its way"
print(f"{len(before)} layers identical byte for byte, {len(after) - len(before)} new")
PYTHON
fi
if command -v skopeo >/dev/null; then
  show "skopeo inspect docker-archive:changed.tar   (somebody else's opinion)"
  skopeo inspect --format '{{len .Layers}} layers, {{.Os}}/{{.Architecture}}' "docker-archive:$root/changed.tar" | indent
fi

runtime=$(command -v runc || command -v crun || true)
if [ -n "$runtime" ] && inside test -e "$tree/bin/sh"; then
  step "Run it" "A container of the new image under ${runtime##*/}, then removed again."
  typed run --rm vellum-demo:changed /bin/sh -c 'cat /demo/note; tail -n 1 /etc/passwd'
  [ -z "$made" ] || typed run --rm vellum-demo:changed
else
  step "Run it" "Skipped: no runc or crun, or the image has no shell."
fi

step "Who uses the disk?" "Layers are shared: the new image costs only what it changed."
typed df

step "Remove everything" "Records first, then trees: a crash here leaves litter, never a lie."
typed umount demo
typed rm --force demo
vellum images --ids | sort -u >"$root/ids"
# shellcheck disable=SC2046  # one word an id
typed rmi --force $(cat "$root/ids")
typed gc
typed df

printf '\n%sDone.%s The store was in %s and is gone now.\n' "$bold" "$reset" "$root"
