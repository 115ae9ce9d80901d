-- The tables of the contract, and those that are the bridge's own.
--
-- Migrations only ever add: the version before this one goes on running while
-- it is applied, and for as long as a rollout takes after it.
--
-- Columns that others write, or leave out, have defaults; a null that they
-- write into a text is read as the empty text.

-- +goose Up

CREATE TABLE workspace (
    id              text PRIMARY KEY,
    owner_id        text NOT NULL DEFAULT '',
    type            text NOT NULL DEFAULT 'regular',
    organization_id text,
    project_id      text,
    deleted         boolean NOT NULL DEFAULT false
);

-- A status update rewrites a row of this table. Whether that is cheap depends
-- on two things: that no index holds a column that an update changes (or has
-- one in its predicate), and that the new version of the row finds room on
-- its page. Then PostgreSQL touches no index and reclaims the old version in
-- passing. Hence the fill factor: rows grow to about 1.5 kB, so that half a
-- page holds two or three and the other half their next versions.
--
-- Columns of fixed width come first: they are found without walking the texts.
CREATE TABLE workspace_instance (
    id              uuid PRIMARY KEY,
    creation_time   timestamptz NOT NULL DEFAULT now(),
    status_version  bigint NOT NULL DEFAULT 0,
    deleted         boolean NOT NULL DEFAULT false,
    -- The bridge's own: a sweep has stopped the row. The version that it
    -- holds, heard again, then counts as newer; applying it clears the mark.
    swept           boolean NOT NULL DEFAULT false,
    -- The bridge's own: a hash of the metrics it was told last.
    measured        bigint NOT NULL DEFAULT 0,
    deployed_time   timestamptz,
    started_time    timestamptz,
    stopping_time   timestamptz,
    stopped_time    timestamptz,
    workspace_id    text NOT NULL,
    region          text DEFAULT '',
    phase           text NOT NULL DEFAULT 'unknown',
    ide_url         text DEFAULT '',
    workspace_image text DEFAULT '',
    workspace_class text DEFAULT '',
    status          jsonb NOT NULL DEFAULT '{}'
) WITH (
    fillfactor = 30,
    -- A row with many ports may pass 2 kB. Up to this size it stays in one
    -- piece and uncompressed: compressing costs more than the whole update.
    toast_tuple_target = 4080,
    -- Old versions are mostly reclaimed in passing; what is left for vacuum
    -- must not wait for a fifth of a big table. The absolute number keeps it
    -- from running all the time over a small one.
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.05
);

CREATE INDEX workspace_instance_workspace ON workspace_instance (workspace_id);
-- For sweeps. stopped_time changes once in the life of a row; with the phase
-- in the predicate instead, every update that changes it would touch the
-- indexes.
CREATE INDEX workspace_instance_open ON workspace_instance (region) WHERE stopped_time IS NULL;

CREATE TABLE prebuilt_workspace (
    id                 uuid PRIMARY KEY,
    build_workspace_id text NOT NULL,
    project_id         text,
    organization_id    text,
    state              text NOT NULL DEFAULT 'queued',
    status_version     bigint NOT NULL DEFAULT 0,
    snapshot           text DEFAULT '',
    error              text DEFAULT '',
    creation_time      timestamptz NOT NULL DEFAULT now(),
    -- The bridge's own: the instance that status_version speaks of, since
    -- versions compare within one instance only, and when it was created,
    -- since the newest instance of the workspace has the word.
    instance_id        uuid,
    instance_created   timestamptz
) WITH (fillfactor = 70);

CREATE INDEX prebuilt_workspace_build ON prebuilt_workspace (build_workspace_id);

CREATE TABLE workspace_instance_metrics (
    instance_id uuid PRIMARY KEY,
    metrics     jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 70);

CREATE TABLE workspace_cluster (
    name                        text PRIMARY KEY,
    url                         text NOT NULL UNIQUE,
    tls                         jsonb,
    state                       text NOT NULL DEFAULT 'available',
    score                       integer NOT NULL DEFAULT 50,
    max_score                   integer NOT NULL DEFAULT 100,
    govern                      boolean NOT NULL DEFAULT true,
    region                      text NOT NULL DEFAULT '',
    admission_constraints       jsonb NOT NULL DEFAULT '[]',
    available_workspace_classes jsonb NOT NULL DEFAULT '[]',
    preferred_workspace_class   text NOT NULL DEFAULT ''
);

CREATE TABLE gitpod_token (
    token_hash text PRIMARY KEY,
    user_id    text NOT NULL,
    name       text NOT NULL DEFAULT ''
);

-- The tokens of an instance are found by a range of names. Only in byte order
-- is "everything that starts with a text" a range.
CREATE INDEX gitpod_token_user_name ON gitpod_token (user_id, name COLLATE "C");

-- Who may write the rows of a shard: the owner of the highest epoch. Writers
-- hold the row FOR SHARE until they commit, so that a new epoch begins after
-- the last commit of the old one.
CREATE TABLE trestle_fence (
    shard      text PRIMARY KEY,
    epoch      bigint NOT NULL,
    owner      text NOT NULL,
    generation bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (
    -- Every lock of a writer marks the row; a page of its own keeps that
    -- cheap, and few rows make a vacuum of it nothing.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 200
);

-- What has been committed and not yet published: one row for a batch and
-- shard. Rows live for milliseconds.
CREATE TABLE trestle_outbox (
    shard      text NOT NULL,
    epoch      bigint NOT NULL,
    owner      text NOT NULL,
    lane       integer NOT NULL,
    seq        bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Who they are and whose is looked up when they are published from here,
    -- which is rare: the row would be ten times the size.
    instances  uuid[] NOT NULL,
    prebuilds  json,
    -- The order of publishing. Within an epoch there is one owner.
    PRIMARY KEY (shard, epoch, seq, lane, owner)
) WITH (
    -- Nearly all of it is dead at any time: vacuum by the number of dead rows
    -- alone, and without pauses, or the indexes grow and grow.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000,
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_cost_delay = 0
);

-- Ids do not compress; do not try.
ALTER TABLE trestle_outbox ALTER COLUMN instances SET STORAGE EXTERNAL;

-- Changes that the database refused for their own sake. They are not tried
-- again; a later update of the instance is.
CREATE TABLE trestle_quarantine (
    instance_id    uuid NOT NULL,
    hash           bigint NOT NULL,
    cluster        text NOT NULL,
    kind           text NOT NULL DEFAULT 'regular',
    status_version bigint NOT NULL,
    sqlstate       text NOT NULL,
    reason         text NOT NULL,
    first_seen     timestamptz NOT NULL DEFAULT now(),
    last_seen      timestamptz NOT NULL DEFAULT now(),
    times          bigint NOT NULL DEFAULT 1,
    PRIMARY KEY (instance_id, hash)
);

CREATE INDEX trestle_quarantine_cluster ON trestle_quarantine (cluster, last_seen);

-- Events for analytics that wait to be sent. A sender leases those it reads,
-- so that replicas share the work.
CREATE TABLE trestle_lifecycle (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at   timestamptz NOT NULL DEFAULT now(),
    leased_by    text NOT NULL DEFAULT '',
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    event        jsonb NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000
);

-- Clusters that were deregistered, and when: their rows are stopped a while
-- later. A cluster that registers again leaves this table.
CREATE TABLE trestle_deregistered_cluster (
    name            text PRIMARY KEY,
    deregistered_at timestamptz NOT NULL DEFAULT now()
);

-- +goose StatementBegin
-- trestle_merge lays the second object over the first, at any depth. What is
-- not an object in both (arrays too) is taken from the second.
CREATE FUNCTION trestle_merge(base jsonb, over jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    entry record;
BEGIN
    IF jsonb_typeof(base) IS DISTINCT FROM 'object' OR jsonb_typeof(over) IS DISTINCT FROM 'object' THEN
        RETURN over;
    END IF;
    FOR entry IN SELECT key, value FROM jsonb_each(over) WHERE jsonb_typeof(value) = 'object' LOOP
        over := over || jsonb_build_object(entry.key, trestle_merge(base -> entry.key, entry.value));
    END LOOP;
    RETURN base || over;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
-- trestle_fill gives an object those values that it lacks, at any depth. A
-- null, an empty text, a zero and an empty object count as lacking.
CREATE FUNCTION trestle_fill(base jsonb, more jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    entry record;
BEGIN
    IF jsonb_typeof(base) IS DISTINCT FROM 'object' THEN
        base := '{}';
    END IF;
    FOR entry IN SELECT key, value FROM jsonb_each(more) LOOP
        IF jsonb_typeof(entry.value) = 'object' THEN
            base := base || jsonb_build_object(entry.key, trestle_fill(base -> entry.key, entry.value));
        ELSIF coalesce(base -> entry.key, 'null') IN ('null', '""', '0', '{}') THEN
            base := base || jsonb_build_object(entry.key, entry.value);
        END IF;
    END LOOP;
    RETURN base;
END
$$;
-- +goose StatementEnd
