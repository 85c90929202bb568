#!/usr/bin/env bash
# The demo: loads an image, changes it in a container, and saves the result as a new image.
#
#   demo/run.sh [IMAGE]     an archive, an OCI layout or a registry reference;
#                           by default, an image is built from Debian packages (and cached)
#
# Everything happens below one new directory, which is unmounted and removed at the end,
# also after a failure or Ctrl-C. Nothing else on the machine changes.
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
  local word line="vellum"
  for word in "$@"; do
    case $word in
      *[!a-zA-Z0-9_./:=@+-]* | "") line+=" '$word'" ;; # no word of the demo has a quote in it
      *) line+=" $word" ;;
    esac
  done
  show "$line"
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
    "Ten layers: Debian packages (git, perl, python3, gcc), and things that layered file" \
    "systems often get wrong: hard links, devices, capabilities, whiteouts, a large file."
  show "scripts/demo-image.py"
  image=$("$here/scripts/demo-image.py")
  made=yes
  printf '     %s, %s MiB\n' "${image#"$here"/}" "$(($(stat -c %s "$image") >> 20))"
fi

step "Load it" \
  "Layers are unpacked in parallel, and every digest is checked. A layer appears in the" \
  "store only when all of it is on disk."
begin=$(seconds)
if [ -e "$image" ]; then
  typed load "$image"
else
  typed pull "$image"
fi
printf '     (%s)\n' "$(since "$begin")"
typed images
name=$(vellum images --ids | head -n 1)
step "Show where its layers come from" "The image's history, one line per build step."
typed history "$name"

step "Create a container" \
  "A container is one more layer, writable and still empty. The image is not copied."
begin=$(seconds)
typed create --name demo "$name"
printf '     (%s)\n' "$(since "$begin")"

step "Mount it" "The kernel shows all layers as one tree, the container's on top."
begin=$(seconds)
show "vellum mount demo"
vellum mount demo >"$root/mounted"
tree=$(tail -n 1 "$root/mounted")
printf '     %s\n     (%s)\n' "$tree" "$(since "$begin")"

# A plain user's mount is in its own namespace: commands on the tree must join it.
inside() {
  if [ "$(id -u)" = 0 ]; then "$@"; else vellum unshare "$@"; fi
}
show "ls $tree"
inside ls "$tree" | tr '\n' ' ' | fold -s -w 72 | indent
echo
if [ -n "$made" ]; then
  echo
  echo "   Some of what survived ten layers: one inode with several names, devices, a name that"
  echo "   is not UTF-8, and a directory whose earlier contents are hidden."
  [ "$(id -u)" = 0 ] || echo "   (A plain user can't create devices: an empty file stands for each, and is saved as one.)"
  show "cd odd && ls -lib fourth links/first links/deep/third dev/* not-utf8* opaque/*"
  inside sh -c "cd '$tree/odd' && ls -lib fourth links/first links/deep/third dev/* not-utf8* opaque/*" | indent
fi

step "Write to it" \
  "Add a file, change one, remove one, and rename a directory. All of it goes to the" \
  "container's own layer; the image below stays unchanged."
script='cd "$1"
mkdir -p demo && echo "written through the mount" > demo/note
[ ! -e etc/passwd ] || echo "demo:x:4242:4242::/:/bin/sh" >> etc/passwd
[ ! -e etc/hosts ] || rm etc/hosts
[ ! -d usr/share/perl ] || mv usr/share/perl usr/share/perl-moved 2>/dev/null || true'
printf '%s\n' 'echo "written through the mount" > demo/note' 'echo demo:x:4242... >> etc/passwd' 'rm etc/hosts' \
  'mv usr/share/perl usr/share/perl-moved' | sed "s/^/${dim}   \$ /; s/\$/${reset}/"
inside sh -ec "$script" sh "$tree"

step "List what changed" \
  "Only the container's layer is read, so the cost depends on the changes, not on the tree." \
  "A is added, C changed, D deleted, as in Docker."
begin=$(seconds)
show "vellum diff demo"
vellum diff demo >"$root/diff"
took=$(since "$begin")
head -n 14 "$root/diff" | indent
lines=$(wc -l <"$root/diff")
[ "$lines" -le 14 ] || printf '     ... %s lines in all\n' "$lines"
printf '     (%s)\n' "$took"

step "Commit it" "The changes become a new image: the old layers and one more."
typed commit --message "changed in the demo" demo vellum-demo:changed
typed images

step "Save it" \
  "Write the new image as an archive that docker, podman and skopeo read. The loaded" \
  "layers come out byte for byte as they went in, with the same digests."
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
assert after[: len(before)] == before, "a layer has changed"
print(f"{len(before)} layers identical byte for byte, {len(after) - len(before)} new")
PYTHON
fi
if command -v skopeo >/dev/null; then
  show "skopeo inspect docker-archive:changed.tar   (a second opinion)"
  skopeo inspect --format '{{len .Layers}} layers, {{.Os}}/{{.Architecture}}' "docker-archive:$root/changed.tar" | indent
fi

runtime=$(command -v runc || command -v crun || true)
if [ -n "$runtime" ] && inside test -e "$tree/bin/sh"; then
  step "Run it" "Run a container from the new image with ${runtime##*/}, then remove it."
  typed run --rm vellum-demo:changed /bin/sh -c 'cat /demo/note; tail -n 1 /etc/passwd'
  [ -z "$made" ] || typed run --rm vellum-demo:changed
else
  step "Run it" "Skipped: no runc or crun, or the image has no shell."
fi

step "Show disk use" "Layers are shared: the new image takes only the space of its changes."
typed df

step "Remove everything" "Records go first, then trees, so that no record ever points to a missing tree."
typed umount demo
typed rm --force demo
vellum images --ids | sort -u >"$root/ids"
# shellcheck disable=SC2046  # one word per id
typed rmi --force $(cat "$root/ids")
typed gc
typed df

printf '\n%sDone.%s The store was in %s and has been removed.\n' "$bold" "$reset" "$root"
