-- Schema 1. Times are nanoseconds since 1970 in UTC. Digests are text, "sha256:...".

-- Facts about the store itself.
CREATE TABLE store (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshots (
    id           INTEGER PRIMARY KEY,
    key          BLOB NOT NULL UNIQUE,             -- any bytes
    kind         INTEGER NOT NULL CHECK (kind IN (1, 2, 3)), -- view, active, committed
    parent       INTEGER REFERENCES snapshots (id),
    keep         INTEGER NOT NULL CHECK (keep IN (0, 1)),    -- while referenced, until removed
    driver       TEXT NOT NULL,
    tree         TEXT NOT NULL UNIQUE,             -- directory under the driver's
    link         TEXT UNIQUE,                      -- short name under overlay2/l
    labels       TEXT NOT NULL,                    -- JSON object of strings
    created_ns   INTEGER NOT NULL,
    updated_ns   INTEGER NOT NULL,
    usage_bytes  INTEGER,                          -- fixed at commit
    usage_inodes INTEGER,
    diff_id      TEXT,                             -- of a layer's uncompressed tar
    tar_bytes    INTEGER,
    features     TEXT,                             -- JSON: what the upper was first mounted with
    size_limit   INTEGER                           -- bytes
) STRICT;
CREATE INDEX snapshots_parent ON snapshots (parent) WHERE parent IS NOT NULL;
CREATE INDEX snapshots_diff_id ON snapshots (diff_id) WHERE diff_id IS NOT NULL;

CREATE TABLE blobs (
    digest     TEXT PRIMARY KEY,
    size       INTEGER NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE recipes (
    diff_id    TEXT PRIMARY KEY,
    size       INTEGER NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    id         TEXT PRIMARY KEY,                   -- digest of the configuration
    manifest   TEXT NOT NULL REFERENCES blobs (digest),
    media_type TEXT NOT NULL,                      -- of the manifest
    created_ns INTEGER NOT NULL                    -- when it came into this store
) STRICT;

CREATE TABLE image_layers (
    image      TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,                   -- 0 is the base
    snapshot   INTEGER NOT NULL REFERENCES snapshots (id),
    diff_id    TEXT NOT NULL,
    media_type TEXT,                               -- of the blob it came as, if any
    blob       TEXT,                               -- its digest; kept in content/ only if asked
    blob_size  INTEGER,
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layers_snapshot ON image_layers (snapshot);

CREATE TABLE tags (
    name       TEXT PRIMARY KEY,
    image      TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    updated_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_image ON tags (image);

CREATE TABLE containers (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    snapshot   INTEGER NOT NULL UNIQUE REFERENCES snapshots (id),
    image      TEXT REFERENCES images (id),
    image_name TEXT,                               -- as the user wrote it
    created_ns INTEGER NOT NULL,
    config     TEXT NOT NULL                       -- JSON that belongs to the caller
) STRICT;

CREATE TABLE volumes (
    name       TEXT PRIMARY KEY,
    created_ns INTEGER NOT NULL,
    labels     TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE container_volumes (
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    volume    TEXT NOT NULL REFERENCES volumes (name),
    PRIMARY KEY (container, volume)
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    id         TEXT PRIMARY KEY,
    purpose    TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    expires_ns INTEGER,                            -- either this
    pid        INTEGER,                            -- or these three: alive as long as the process
    pid_start  INTEGER,
    boot_id    TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE lease_snapshots (
    lease    TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    snapshot INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    PRIMARY KEY (lease, snapshot)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease_digests (
    lease  TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    digest TEXT NOT NULL,                          -- a blob's, or a recipe's diff id
    PRIMARY KEY (lease, digest)
) STRICT, WITHOUT ROWID;
