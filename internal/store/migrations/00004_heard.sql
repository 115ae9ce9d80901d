-- What a row was told last, so that a status that an owner hears for the first
-- time, as after a hand-over, is known to be a repeat.

-- +goose Up

-- The bridge's own: a hash of the last status applied and of its version. It says
-- nothing once somebody else has changed the version.
ALTER TABLE workspace_instance ADD COLUMN heard bigint NOT NULL DEFAULT 0;
