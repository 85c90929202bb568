#!/bin/bash
# Replaces systemctl where the commands of a guide are tested (guide.sh). No systemd runs there;
# this starts and stops the same services. live_systemd.rs tests the units under a real systemd.
set -eu
pids=/run/services
mkdir -p "$pids"
service() { # NAME: without its suffix
  case $1 in vellum-*.socket) echo "${1%.socket}" ;; *) echo "${1%.service}" ;; esac
}
runs() { [ -e "$pids/$1" ] && kill -0 "$(cat "$pids/$1")" 2> /dev/null; }
wait_for() { # COMMAND...: until it succeeds, or a minute
  for _ in $(seq 600); do
    ! "$@" > /dev/null 2>&1 || return 0
    sleep 0.1
  done
  echo "systemctl: $* does not answer" >&2
  tail -n 20 "$pids"/*.log >&2
  return 1
}
start() {
  if runs "$1"; then return 0; fi
  local command answers
  case $1 in
    vellum-*)
      command=$(sed -n 's/^ExecStart=\(..*\)/\1/p' /etc/systemd/system/"$1".service{,.d/*.conf} 2> /dev/null | tail -n 1)
      answers=(test -S "/run/vellum/containerd.sock")
      [ "$1" = vellum-containerd ] || answers=(test -S /run/docker/plugins/vellum.sock)
      rm -f "${answers[2]}"
      ;;
    containerd) command=containerd answers=(ctr version) ;;
    docker)
      start containerd
      # No network: the test has none.
      command='dockerd --containerd=/run/containerd/containerd.sock --iptables=false --ip6tables=false --bridge=none'
      answers=(docker version)
      ;;
    *) echo "systemctl: there is no $1" >&2 && return 5 ;;
  esac
  # shellcheck disable=SC2086 # words are meant
  setsid $command > "$pids/$1.log" 2>&1 < /dev/null &
  echo $! > "$pids/$1"
  wait_for "${answers[@]}"
  # systemd holds the socket over a restart, and no call fails. Here containerd has to connect
  # again, and refuses calls until it has.
  if [ "$1" = vellum-containerd ] && runs containerd && ctr plugins ls | grep -q ' vellum '; then
    wait_for ctr snapshots --snapshotter vellum prepare systemctl
    ctr snapshots --snapshotter vellum rm systemctl
  fi
}
gone() { ! runs "$1"; }
stop() {
  runs "$1" || return 0
  kill "$(cat "$pids/$1")"
  wait_for gone "$1"
  rm "$pids/$1"
}
verb=$1 now=
shift
[ "${1:-}" != --now ] || { now=yes && shift; }
case $verb in
  daemon-reload) ;;
  enable) [ -z "$now" ] || for unit in "$@"; do start "$(service "$unit")"; done ;;
  disable) [ -z "$now" ] || for unit in "$@"; do stop "$(service "$unit")"; done ;;
  start) for unit in "$@"; do start "$(service "$unit")"; done ;;
  stop) for unit in "$@"; do stop "$(service "$unit")"; done ;;
  restart) for unit in "$@"; do stop "$(service "$unit")"; start "$(service "$unit")"; done ;;
  try-restart)
    for unit in "$@"; do
      if runs "$(service "$unit")"; then stop "$(service "$unit")"; start "$(service "$unit")"; fi
    done
    ;;
  reload) for unit in "$@"; do kill -HUP "$(cat "$pids/$(service "$unit")")"; done ;;
  is-active) runs "$(service "$1")" && echo active ;;
  *) echo "systemctl: no $verb in tests" >&2 && exit 2 ;;
esac
