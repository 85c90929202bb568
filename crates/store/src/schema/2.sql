-- Schema 2. The referring side of every foreign key is indexed: removing what is referred to no longer reads whole tables.

CREATE INDEX images_manifest ON images (manifest);
CREATE INDEX containers_image ON containers (image) WHERE image IS NOT NULL;
CREATE INDEX container_volumes_volume ON container_volumes (volume);
CREATE INDEX lease_snapshots_snapshot ON lease_snapshots (snapshot);
CREATE INDEX lease_digests_digest ON lease_digests (digest);
