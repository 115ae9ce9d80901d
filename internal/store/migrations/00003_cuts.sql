-- Into how many slices clusters are cut, and since which generation. The
-- fences of a generation that is over let nobody write.

-- +goose Up

CREATE TABLE trestle_cut (
    cluster    text PRIMARY KEY,
    generation bigint NOT NULL,
    slices     integer NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- The fences of a cluster are looked up when a store of assignments was lost.
ALTER TABLE trestle_fence ADD COLUMN cluster text NOT NULL DEFAULT '';

-- Until now every shard was a whole cluster, whose '#' are doubled in its name.
UPDATE trestle_fence SET cluster = replace(shard, '##', '#') WHERE cluster = '';

CREATE INDEX trestle_fence_cluster ON trestle_fence (cluster);
