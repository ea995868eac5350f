#!/bin/sh
# Installs the agent (or the cloud server) on a 64-bit Debian or Raspberry Pi OS, as a service of systemd where that runs.
# Safe to run twice: what is as it should be is left alone. docs/raspberry-pi.md says more.
set -eu

usage() {
  cat <<'END'
usage: install.sh [--part edge|cloud] [--cloud HOST:PORT] [--bundle DIR] [--from DIR | --wheel FILE] [--wheels DIR]
                  [--constraints FILE|none] [--python PROGRAM] [--no-start] [--dry-run]
       install.sh --rollback [--part edge|cloud]
       install.sh --uninstall [--purge]

  --part         what is installed; the agent, edge, unless said otherwise
  --cloud        the cloud server that the agent asks; without one the device answers everything
  --bundle       the models, copied; the first time the ones of this checkout, unless said otherwise
  --from         the checkout to install from; unless said otherwise the one that this script is in
  --wheel        a wheel of edgemux, instead of a checkout
  --wheels       a folder with the wheels of everything else: no network is needed
  --constraints  the versions of everything else; constraints.txt beside this script unless said otherwise
  --python       the Python to use; python3 unless said otherwise
  --no-start     install, start nothing
  --dry-run      say what would be done, do nothing
  --rollback     go back to the release before this one
  --uninstall    stop and remove it; --purge: its configuration and state too
END
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
part=edge cloud='' bundle='' from='' wheel='' wheels='' python=python3 action=install
constraints=$here/constraints.txt
start=yes dry=no purge=no changes=0 work='' unfinished='' restart=no switched=''
top=/opt/edgemux
etc=/etc/edgemux
link=/usr/local/bin/edgemux
# Two releases and what pip needs meanwhile.
NEEDED_KB=450000

die() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

say() { echo "$*"; }

# Something is about to change: say so; false in a dry run.
changing() {
  changes=$((changes + 1))
  if [ "$dry" = yes ]; then
    say "would: $*"
    return 1
  fi
  say "- $*"
}

# --- what was asked for ---------------------------------------------------------------------------------------------
value() { if [ $# -lt 2 ] || [ -z "$2" ]; then die "$1 needs a value; see --help" 2; fi; }

while [ $# -gt 0 ]; do
  case $1 in
    --part) value "$@"; part=$2; shift ;;
    --cloud) value "$@"; cloud=$2; shift ;;
    --bundle) value "$@"; bundle=$2; shift ;;
    --from) value "$@"; from=$2; shift ;;
    --wheel) value "$@"; wheel=$2; shift ;;
    --wheels) value "$@"; wheels=$2; shift ;;
    --constraints) value "$@"; constraints=$2; shift ;;
    --python) value "$@"; python=$2; shift ;;
    --no-start) start=no ;;
    --dry-run) dry=yes ;;
    --rollback) action=rollback ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option $1; see --help" 2 ;;
  esac
  shift
done

check_words() {
  case $part in edge | cloud) ;; *) die "--part must be edge or cloud" 2 ;; esac
  if [ -n "$cloud" ]; then
    [ "$part" = edge ] || die "--cloud is for the agent" 2
    printf '%s' "$cloud" | tr '\n' ' ' | grep -Eq '^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$' || die "--cloud must be HOST:PORT" 2
  fi
  [ -z "$from" ] || [ -z "$wheel" ] || die "--from and --wheel exclude each other" 2
  [ -z "$wheel" ] || [ -f "$wheel" ] || die "--wheel: there is no such file" 2
  [ -z "$wheels" ] || [ -d "$wheels" ] || die "--wheels: there is no such folder" 2
  [ -z "$bundle" ] || [ -f "$bundle/manifest.json" ] || die "--bundle: there is no bundle, a folder with a manifest.json" 2
  [ "$constraints" = none ] || [ -f "$constraints" ] || die "--constraints: there is no such file" 2
  [ "$purge" = no ] || [ "$action" = uninstall ] || die "--purge goes with --uninstall" 2
  # Absolute, as what is started below may stand elsewhere.
  [ -z "$wheel" ] || wheel=$(readlink -f "$wheel")
  [ -z "$wheels" ] || wheels=$(readlink -f "$wheels")
  [ -z "$bundle" ] || bundle=$(readlink -f "$bundle")
  [ "$constraints" = none ] || constraints=$(readlink -f "$constraints")
  from=$(readlink -f "${from:-$here/../..}")
  case $python in */*) python=$(readlink -f "$(dirname "$python")")/${python##*/} ;; esac
  # Python imports what lies where it is started, and here it is root's.
  cd /
}

# --- may it be done here? -------------------------------------------------------------------------------------------
check_machine() {
  [ "$(uname -s)" = Linux ] || die "Linux only"
  case $(uname -m) in
    aarch64 | x86_64) ;;
    arm* | i?86) die "64-bit only: this is $(uname -m), for which there are no packages; see docs/raspberry-pi.md" ;;
    *) die "there are no packages for $(uname -m): aarch64 and x86_64 only" ;;
  esac
  # A 64-bit kernel under a 32-bit system is what some Raspberry Pi OS images have.
  if command -v dpkg >/dev/null; then
    case $(dpkg --print-architecture) in
      arm64 | amd64) ;;
      *) die "64-bit only: the kernel is, but this system is $(dpkg --print-architecture); install a 64-bit system" ;;
    esac
  fi
  [ "$(id -u)" = 0 ] || [ "$dry" = yes ] || die "run it as root: sudo $0"
}

check_python() {
  command -v "$python" >/dev/null || die "there is no $python; on Debian: apt install python3-venv"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$python is older than 3.11; Debian 12 and Raspberry Pi OS 12 have it, see --python"
  "$python" -c 'import struct, sys; sys.exit(struct.calcsize("P") != 8)' ||
    die "64-bit only: $python is a 32-bit program"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || die "no python3-venv; on Debian: apt install python3-venv"
}

check_disk() {
  folder=$top
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(df -Pk "$folder" | awk 'NR == 2 {print $4}')
  [ "$free" -ge "$NEEDED_KB" ] || die "too little disk: $((free / 1000)) MB free in $folder, $((NEEDED_KB / 1000)) needed"
}

has_systemd() { [ -d /run/systemd/system ] && [ "$start" = yes ]; }

# --- releases: each in a folder of its own; `current` says which is used --------------------------------------------
# A digest of all files below some paths of a folder.
digest_below() {
  (cd "$1" && shift && find "$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) |
    sha256sum | cut -c 1-12
}

parts() { # what is installed, and what is asked for
  for each in cloud edge; do
    if [ "$each" = "$part" ] || [ -f "/etc/systemd/system/edgemux-$each.service" ]; then echo "$each"; fi
  done
}

name_release() {
  if [ -n "$wheel" ]; then
    source=$(sha256sum <"$wheel")
  else
    [ -f "$from/pyproject.toml" ] || die "--from: there is no checkout of edgemux" 2
    source=$(digest_below "$from" pyproject.toml README.md LICENSE proto multiplexer edge cloud compression cli)
  fi
  versions=none
  [ "$constraints" = none ] || versions=$(sha256sum <"$constraints")
  extras=$(parts | paste -sd, -)
  release=$(printf '%s\n' "$source" "$versions" "$extras" "$("$python" --version)" | sha256sum | cut -c 1-12)
}

pip_install() { # what pip is to install
  set -- --no-compile --only-binary=:all: "$@"
  [ "$constraints" = none ] || set -- --constraint "$constraints" "$@"
  [ -z "$wheels" ] || set -- --no-index --find-links "$wheels" "$@"
  "$new/bin/python" -m pip --disable-pip-version-check --no-cache-dir --no-input \
    install --quiet --root-user-action=ignore "$@"
}

check_network() {
  [ -z "$wheels" ] || return 0
  "$new/bin/python" -m pip --disable-pip-version-check --no-cache-dir --no-input --retries 1 --timeout 20 \
    download --quiet --no-deps --dest "$work" typing-extensions >/dev/null 2>&1 ||
    die "no network: the package index does not answer; see --wheels"
}

make_release() {
  new=$top/releases/$release
  if [ -f "$new/complete" ]; then return 0; fi
  check_disk
  changing "make a Python environment for $extras in $new" || return 0
  mkdir -p "$top/releases"
  rm -rf "$new"
  unfinished=$new
  "$python" -m venv "$new"
  check_network
  say "  install the packages; on a Raspberry Pi this takes some minutes"
  pip_install "${wheel:-$from}[$extras]" || die "the packages cannot be installed: what pip says stands above"
  for each in $(parts); do
    # Also writes the bytecode of what is imported, and of nothing else: the services may not.
    "$new/bin/python" -c "import edgemux.cli.main, edgemux.$each.server" 2>/dev/null ||
      die "the packages do not run here; see docs/raspberry-pi.md"
  done
  touch "$new/complete"
  unfinished=''
}

now_points_to() { if [ -L "$1" ]; then readlink "$1"; fi; }

# A link that is another from one moment to the next.
point() { ln -sfn "$2" "$1.new" && mv -T "$1.new" "$1"; }

# What runs is about to be another: noted on disk, so that a run that is interrupted leaves the restart to the next one.
restart_due() {
  restart=yes
  : >"$top/restart-due"
}

use_release() {
  before=$(now_points_to "$top/current")
  if [ "$before" != "releases/$release" ] && changing "use release $release${before:+ instead of ${before#releases/}}"; then
    restart_due
    [ -z "$before" ] || point "$top/previous" "$before"
    point "$top/current" "releases/$release"
    switched=$before
  fi
  if [ "$(now_points_to "$top/bin")" != current/bin ] && changing "link $top/bin to the release in use"; then
    point "$top/bin" current/bin
  fi
  if [ ! -e "$link" ] && [ ! -L "$link" ] && changing "link $link"; then
    mkdir -p "$(dirname "$link")"
    ln -s "$top/bin/edgemux" "$link"
  fi
}

drop_old_releases() {
  [ -d "$top/releases" ] || return 0
  for each in "$top"/releases/*; do
    case releases/${each##*/} in
      "$(now_points_to "$top/current")" | "$(now_points_to "$top/previous")" | "releases/$release" | 'releases/*') ;;
      *) if changing "remove the old release ${each##*/}"; then rm -rf "$each"; fi ;;
    esac
  done
}

# --- models, configuration, unit ------------------------------------------------------------------------------------
# Where the bundle goes: a folder by its name and manifest, which vouches for every other file.
name_bundle() {
  config=$etc/$part.toml
  if [ -z "$bundle" ] && [ ! -f "$config" ]; then
    bundle=$from/deploy/bundles/fashion-mnist
    [ -f "$bundle/manifest.json" ] || die "no models: give --bundle DIR" 2
  fi
  target=''
  if [ -n "$bundle" ]; then
    # What stands in a configuration is of plain letters.
    name=$(basename "$bundle" | tr -c 'A-Za-z0-9._\n-' _)
    target=$top/bundles/$name-$(sha256sum <"$bundle/manifest.json" | cut -c 1-12)
  fi
}

copy_bundle() {
  if [ -z "$target" ] || [ -d "$target" ]; then return 0; fi
  changing "copy the models to $target" || return 0
  mkdir -p "$top/bundles"
  rm -rf "$target.new"
  unfinished=$target.new
  cp -R "$bundle" "$target.new"
  chmod -R u=rwX,go=rX "$target.new"
  PYTHONDONTWRITEBYTECODE=1 "$top/releases/$release/bin/edgemux" bundle verify "$target.new" >/dev/null ||
    die "--bundle: its files are not what its manifest says"
  restart_due
  mv "$target.new" "$target"
  unfinished=''
}

make_group() {
  if getent group edgemux >/dev/null; then return 0; fi
  if changing "make the group edgemux, which may read $etc"; then groupadd --system edgemux; fi
}

# Write a file, unless it is as it should be, or somebody has edited what was written before.
put() { # path, mode, group, a file with what should be in it
  record=$top/written/$(basename "$1").sha256
  if [ -f "$1" ]; then
    if cmp -s "$4" "$1"; then return 0; fi
    if ! sha256sum --status --check "$record" 2>/dev/null; then
      if cmp -s "$4" "$1.new"; then return 0; fi
      changing "leave $1 as somebody has edited it, and write what it would be to $1.new" || return 0
      place "$4" "$1.new" "$2" "$3"
      return 0
    fi
  fi
  changing "write $1" || return 0
  mkdir -p "$top/written"
  restart_due
  place "$4" "$1" "$2" "$3"
  sha256sum "$1" >"$record"
}

# A file that is whole from one moment to the next.
place() { install -D -m "$3" -g "$4" "$1" "$2.writing" && mv "$2.writing" "$2"; }

# What is not said this time is as it was.
in_config() { sed -n "s/^$1 = \"\\(.*\\)\"\$/\\1/p" "$config" 2>/dev/null | head -n 1; }

config_text() {
  echo "# Written by install.sh. Edit it: it is left alone then. All keys: deploy/config/$part.toml"
  echo "bundle = \"${target:-$(in_config bundle)}\""
  if [ "$part" = edge ]; then
    # The agent serves it where the new one turns out to be damaged.
    was=$(in_config bundle)
    if [ -z "$target" ] || [ "$was" = "$target" ]; then was=$(in_config previous_bundle); fi
    if [ -n "$was" ] && [ -d "$was" ]; then echo "previous_bundle = \"$was\""; fi
    echo 'state_dir = "/var/lib/edgemux" # budgets over a restart'
    asked=${cloud:-$(in_config address)}
    if [ -n "$asked" ]; then printf '\n[cloud]\naddress = "%s"\n' "$asked"; fi
  fi
}

write_config() {
  if [ ! -d "$etc" ] && changing "make $etc"; then install -d -m 750 -g edgemux "$etc"; fi
  # Without a wish there is nothing to write over: an edited configuration is nobody's business.
  if [ -f "$config" ] && [ -z "$cloud$bundle" ]; then return 0; fi
  config_text >"$work/config"
  put "$config" 640 edgemux "$work/config"
}

write_unit() {
  unit=$here/../systemd/edgemux-$part.service
  [ -f "$unit" ] || die "there is no $unit: take the whole folder deploy of the checkout along" 2
  put "/etc/systemd/system/edgemux-$part.service" 644 root "$unit"
}

run_service() {
  if ! has_systemd; then return 0; fi
  name=edgemux-$part
  if ! systemctl is-enabled --quiet "$name" 2>/dev/null && changing "have systemd start $name with the machine"; then
    systemctl enable --quiet "$name"
  fi
  [ ! -f "$top/restart-due" ] || restart=yes
  if [ "$restart" = no ] && systemctl is-active --quiet "$name"; then return 0; fi
  changing "start $name, and wait until it answers" || return 0
  systemctl daemon-reload
  if systemctl restart "$name"; then
    # The other service, where there is one, is of the same release.
    for each in $(parts); do
      [ "$each" = "$part" ] || systemctl try-restart "edgemux-$each" || die "edgemux-$each does not start again"
    done
    rm -f "$top/restart-due"
    return 0
  fi
  before=$(now_points_to "$top/previous")
  if [ -n "$before" ] && [ "$(now_points_to "$top/current")" = "releases/$release" ] && [ -n "$switched" ]; then
    point "$top/previous" "releases/$release"
    point "$top/current" "$before"
    systemctl restart "$name" || die "neither release starts: journalctl -u $name"
    rm -f "$top/restart-due"
    die "the new release does not start, the one before is in use again: journalctl -u $name"
  fi
  die "$name does not start: journalctl -u $name"
}

# --- the three things that it does ----------------------------------------------------------------------------------
say_what_next() {
  if [ "$changes" = 0 ]; then
    say "Nothing to change: release $release is installed and in use."
  elif [ "$dry" = yes ]; then
    say "Nothing was done: $changes steps to do."
    return 0
  fi
  edgemux=$top/bin/edgemux
  if [ "$part" = edge ]; then
    PYTHONDONTWRITEBYTECODE=1 "$edgemux" doctor --config "$config" || true
  fi
  if ! has_systemd; then
    say "Next: no service was started${systemd_missing}; by hand: $edgemux $part --config $config"
  elif [ "$part" = edge ]; then
    say "Next: edgemux infer PICTURE --to 127.0.0.1:9001, and curl http://127.0.0.1:9000/status"
  else
    say "Next: curl http://127.0.0.1:8000/v2/health/ready; to let others in, see docs/security.md"
  fi
}

install_it() {
  check_machine
  check_python
  systemd_missing=', as no systemd runs here'
  [ "$start" = yes ] || systemd_missing=''
  name_release
  name_bundle
  make_release
  copy_bundle
  make_group
  write_config
  write_unit
  use_release
  run_service
  drop_old_releases
  say_what_next
}

roll_back() {
  check_machine
  before=$(now_points_to "$top/previous")
  if [ -z "$before" ] || [ ! -f "$top/$before/complete" ]; then die "there is no release before this one"; fi
  release=${before#releases/}
  now=$(now_points_to "$top/current")
  if changing "use release $release instead of ${now#releases/}"; then
    restart_due
    point "$top/previous" "$now"
    point "$top/current" "$before"
    switched=''
  fi
  run_service
}

uninstall() {
  check_machine
  for each in edge cloud; do
    file=/etc/systemd/system/edgemux-$each.service
    if [ -f "$file" ] && changing "stop and remove the service edgemux-$each"; then
      if [ -d /run/systemd/system ]; then systemctl disable --quiet --now "edgemux-$each" || true; fi
      rm -f "$file" "$file.new"
      if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
    fi
  done
  if [ "$(now_points_to "$link")" = "$top/bin/edgemux" ] && changing "remove $link"; then rm -f "$link"; fi
  if [ -d "$top" ] && changing "remove $top, the models in it too"; then rm -rf "$top"; fi
  if [ "$purge" = yes ]; then
    for each in "$etc" /var/lib/edgemux /var/lib/private/edgemux; do
      if { [ -e "$each" ] || [ -L "$each" ]; } && changing "remove $each"; then rm -rf "$each"; fi
    done
    if getent group edgemux >/dev/null && changing "remove the group edgemux"; then groupdel edgemux; fi
  elif [ -d "$etc" ]; then
    say "$etc stays; --purge removes it, and the state in /var/lib/edgemux"
  fi
  if [ "$changes" = 0 ]; then say "Nothing to remove."; fi
}

clean_up() {
  if [ -n "$unfinished" ]; then rm -rf "$unfinished"; fi
  if [ -n "$work" ]; then rm -rf "$work"; fi
}

umask 022
check_words
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
if [ "$(id -u)" = 0 ] && [ "$dry" = no ]; then
  exec 9>/run/edgemux-install.lock
  flock --nonblock 9 || die "another install.sh is at work"
fi
work=$(mktemp -d)
case $action in
  install) install_it ;;
  rollback) roll_back ;;
  uninstall) uninstall ;;
esac
