write_config
start_vellum
start_containerd

dockerd_pid=
start_docker() { # SNAPSHOTTER
  mkdir -p "$dir/docker-$1"
  echo '{"features":{"containerd-snapshotter":true},"storage-driver":"'"$1"'"}' > "$dir/docker-$1/daemon.json"
  dockerd --containerd "$run/sock" --containerd-namespace "moby-$1" --containerd-plugins-namespace "plugins-$1" \
    --config-file "$dir/docker-$1/daemon.json" --data-root "$dir/docker-$1/data" \
    --exec-root "$run/d" --pidfile "$run/d.pid" --host "unix://$run/d.sock" \
    --iptables=false --ip6tables=false --bridge=none --ip-forward=false --ip-masq=false > "$dir/docker-$1.log" 2>&1 &
  dockerd_pid=$!
  wait_for docker version
}
stop_docker() {
  kill $dockerd_pid
  wait $dockerd_pid || true
}
export DOCKER_HOST=unix://$run/d.sock DOCKER_CONFIG=$dir/client

# Everything in a container's tree that doesn't depend on its creation time: names, types, owners,
# modes, links, contents.
contents() { # CONTAINER
  mkdir "$dir/contents"
  docker export "$1" | tar --extract --directory "$dir/contents" --numeric-owner --same-owner --same-permissions --xattrs --xattrs-include='*'
  (
    cd "$dir/contents"
    rm -f .dockerenv etc/hostname etc/hosts etc/resolv.conf
    find . -mindepth 1 \( -type d -printf '%P %y %m %U %G\n' -o -printf '%P %y %m %U %G %s %n %l\n' \) | sort
    find . -type f -print0 | sort -z | xargs -0 sha256sum
  )
  rm -r "$dir/contents"
}
image() { # IMAGE: its tree, and what was done
  docker create --name look --network none "$1" /bin/true > /dev/null
  contents look
  docker rm look > /dev/null
  docker history --no-trunc --format '{{.CreatedBy}}' "$1"
}

mkdir -p "$dir/context"
echo copied > "$dir/context/file"
cat > "$dir/context/Dockerfile" << 'DOCKERFILE'
FROM demo:changed AS first
RUN echo "version 8" > /app/version && chmod 640 /app/version
RUN mkdir -p /built/sub && rm -r /odd/links && mv /app /moved && ln /built/sub/../../moved/version /built/again
COPY file /built/file
FROM vellum-demo-small
COPY --from=first /built /built
COPY --from=first /moved/version /app/version
RUN rm -r /odd/replaced && mkdir /odd/replaced && touch /odd/replaced/new
DOCKERFILE

# The same steps on either snapshotter; their output goes to the file.
steps() { # FILE
  {
    docker load --quiet --input /exchange/small.tar
    docker run --rm --network none vellum-demo-small
    docker pull --quiet "$REGISTRY/demo:small"
    docker run --rm --network none "$REGISTRY/demo:small"
    docker image inspect --format '{{json .RootFS}}' vellum-demo-small "$REGISTRY/demo:small"
    docker run --name box --network none vellum-demo-small /bin/sh -c '
      echo "version 7" > /app/version; echo x > /odd/new; rm /odd/setuid; mkdir /made && mv /made /renamed'
    echo "diff:"
    docker diff box | sort
    docker commit box demo:changed > /dev/null
    image demo:changed
    echo "classic:"
    DOCKER_BUILDKIT=0 docker build --quiet --network none --target first --tag demo:classic "$dir/context" > /dev/null 2>&1
    image demo:classic
    echo "buildkit:"
    docker buildx build --quiet --network none --tag demo:built "$dir/context" > /dev/null
    image demo:built
    docker run --rm --network none demo:built /bin/cat /app/version /built/file
    # Once more: nothing has to be done.
    docker buildx build --progress plain --network none --tag demo:built "$dir/context" 2>&1 | grep -c CACHED
    docker save --output "$dir/saved.tar" demo:built demo:changed
    docker cp box:/app/version "$dir/copied"
    cat "$dir/copied"
    docker rm box
    docker rmi demo:built demo:changed demo:classic > /dev/null
    docker load --quiet --input "$dir/saved.tar" | sort
    image demo:built
    image demo:changed
    docker image ls --format '{{.Repository}}:{{.Tag}}' | sort
  } > "$1"
}

start_docker overlayfs
steps "$dir/theirs"
stop_docker
start_docker vellum
echo "ok: driver: $(docker info --format '{{.Driver}}' 2> /dev/null)"
steps "$dir/ours"
test "$(grep -c . "$dir/theirs")" -gt 500
diff "$dir/theirs" "$dir/ours" > "$dir/difference" || { head -n 20 "$dir/difference" >&2; exit 1; }
echo "ok: every step gave what it gives on overlayfs"
echo "ok: built: $(docker run --rm --network none demo:built /bin/sh -c 'cat /app/version /built/file; ls /odd/replaced; ls -d /odd/setuid' | tr '\n' ' ')"

# The server stops and starts again while a container runs.
docker run --detach --name stays --network none vellum-demo-small /bin/sh -c 'while :; do sleep 1; done' > /dev/null
crash $vellum_pid
docker exec stays /bin/sh -c 'echo alone > /alone'
start_vellum
started() { docker run --rm --network none demo:built /bin/true; }
wait_for started
echo "ok: restart: $(docker exec stays /bin/cat /alone)"

docker rm --force stays > /dev/null
docker rmi demo:built demo:changed vellum-demo-small "$REGISTRY/demo:small" > /dev/null
docker buildx prune --all --force > /dev/null
wait_for sh -c "test -z \"\$(ctr --address '$run/sock' -n moby-vellum snapshots --snapshotter vellum ls | sed 1d)\""
wait_for sh -c "test \"\$(ls '$dir/v/overlay2')\" = l"
echo "ok: nothing is left"
stop_docker
kill $containerd_pid
wait $containerd_pid || true
kill $vellum_pid
wait $vellum_pid
echo "ok: ended"
