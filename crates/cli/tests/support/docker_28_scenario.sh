write_config
start_vellum
start_containerd
mkdir -p "$dir/docker"
echo '{"features":{"containerd-snapshotter":true},"storage-driver":"vellum"}' > "$dir/docker/daemon.json"
dockerd --containerd "$run/sock" --config-file "$dir/docker/daemon.json" --data-root "$dir/docker/data" \
  --exec-root "$run/d" --pidfile "$run/d.pid" --host "unix://$run/d.sock" \
  --iptables=false --ip6tables=false --bridge=none --ip-forward=false --ip-masq=false > "$dir/docker.log" 2>&1 &
dockerd_pid=$!
export DOCKER_HOST=unix://$run/d.sock
wait_for docker version

echo "ok: driver: $(docker info --format '{{.Driver}}' 2> /dev/null)"
docker load --quiet --input /exchange/small.tar > /dev/null
echo "ok: load: $(docker run --rm --network none vellum-demo-small)"
docker pull --quiet "$REGISTRY/demo:small" > /dev/null
echo "ok: pull: $(docker run --rm --network none "$REGISTRY/demo:small")"

docker run --name box --network none vellum-demo-small /bin/sh -c 'echo "version 7" > /app/version; echo x > /odd/new'
echo "ok: diff: $(docker diff box | sort | tr '\n' ' ')"
docker commit box demo:changed > /dev/null
echo "ok: commit: $(docker run --rm --network none demo:changed /bin/cat /app/version)"

mkdir -p "$dir/context"
printf 'FROM demo:changed\nRUN echo "version 8" > /app/version\nRUN mkdir /built && rm -r /odd/links\nCOPY file /built/file\n' > "$dir/context/Dockerfile"
echo copied > "$dir/context/file"
DOCKER_BUILDKIT=0 docker build --quiet --network none --tag demo:built "$dir/context" > /dev/null 2>&1
echo "ok: build: $(docker run --rm --network none demo:built /bin/sh -c 'cat /app/version /built/file; ls -d /odd/links 2>&1' | tr '\n' ' ')"

docker save --output "$dir/saved.tar" demo:built
docker cp box:/app/version "$dir/copied"
echo "ok: cp: $(cat "$dir/copied")"

# The server goes and comes back under a container that runs.
docker run --detach --name stays --network none vellum-demo-small /bin/sh -c 'while :; do sleep 1; done' > /dev/null
crash $vellum_pid
docker exec stays /bin/sh -c 'echo alone > /alone'
start_vellum
started() { docker run --rm --network none demo:built /bin/true; }
wait_for started
echo "ok: restart: $(docker exec stays /bin/cat /alone)"

docker rm --force stays box > /dev/null
docker rmi demo:built demo:changed vellum-demo-small "$REGISTRY/demo:small" > /dev/null
docker load --quiet --input "$dir/saved.tar" > /dev/null
echo "ok: load again: $(docker run --rm --network none demo:built /bin/cat /app/version)"
docker rmi demo:built > /dev/null
wait_for sh -c "test -z \"\$(ctr --address '$run/sock' -n moby snapshots --snapshotter vellum ls | sed 1d)\""
wait_for sh -c "test \"\$(ls '$dir/v/overlay2')\" = l"
echo "ok: nothing is left"
kill $dockerd_pid
wait $dockerd_pid || true
kill $containerd_pid
wait $containerd_pid || true
kill $vellum_pid
wait $vellum_pid
echo "ok: ended"
