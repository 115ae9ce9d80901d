-- Stops rows that are still as they were read, in one statement and so in one
-- commit. The rules of apply.sql hold here too: sets are joined to tables by
-- key only, and what is written comes from the row as it was locked.

WITH

-- The lock keeps a new term from beginning before the commit; one that began
-- while we waited for it is seen, since the condition is checked again then.
leader AS MATERIALIZED (
    SELECT f.epoch
    FROM trestle_fence f
    WHERE f.shard = $1 AND f.epoch = $2 AND f.owner = $3
    FOR SHARE
),

-- Nor may a cluster come back while its rows are stopped for having gone.
gone AS MATERIALIZED (
    SELECT d.name
    FROM trestle_deregistered_cluster d
    WHERE $4::bool AND d.name = $5
    FOR SHARE
),

allowed AS MATERIALIZED (
    SELECT l.leads, l.leads AND (NOT $4::bool OR EXISTS (SELECT FROM gone)) AS may_stop
    FROM (SELECT EXISTS (SELECT FROM leader) AS leads) l
),

-- The rows, locked in the order given, which is that of their ids. A row that
-- has moved on is left alone.
locked AS MATERIALIZED (
    SELECT
        u.id, i.status_version, i.phase, i.workspace_id, i.creation_time, coalesce(w.owner_id, '') AS owner_id,
        coalesce(i.stopping_time, now()) AS stopping_time, now() AS stopped_time,
        CASE WHEN jsonb_typeof(i.status) = 'object' THEN i.status ELSE '{}' END
            || jsonb_build_object('phase', 'stopped', 'message', 'Stopped by the bridge. Previously in phase ' || i.phase) AS status
    FROM (
        SELECT u.id, u.version, u.phase
        FROM unnest($6::uuid[], $7::bigint[], $8::text[]) AS u (id, version, phase)
        WHERE (SELECT may_stop FROM allowed)
        OFFSET 0
    ) u
    CROSS JOIN LATERAL (
        SELECT i.status_version, i.phase, i.workspace_id, i.creation_time, i.stopping_time, i.status
        FROM workspace_instance i
        WHERE i.id = u.id AND i.status_version = u.version AND i.phase = u.phase
            AND i.stopped_time IS NULL AND coalesce(i.region, '') = $5
        FOR NO KEY UPDATE
    ) i
    LEFT JOIN LATERAL (
        SELECT w.owner_id
        FROM workspace w
        WHERE w.id = i.workspace_id
        LIMIT 1
    ) w ON true
),

written AS (
    UPDATE workspace_instance i
    SET phase = 'stopped', stopping_time = l.stopping_time, stopped_time = l.stopped_time,
        status = l.status, swept = true
    FROM locked l
    WHERE i.id = l.id
),

-- See apply.sql.
revoked AS (
    DELETE FROM gitpod_token t
    USING locked l
    CROSS JOIN LATERAL (
        SELECT k.token_hash
        FROM gitpod_token k
        WHERE k.user_id = l.owner_id
            AND k.name COLLATE "C" >= l.id::text || '-' AND k.name COLLATE "C" < l.id::text || '.'
        ORDER BY k.name COLLATE "C"
        OFFSET 0
    ) found
    WHERE t.token_hash = found.token_hash
),

-- Of two instances of one workspace the newer has the word.
spoken AS MATERIALIZED (
    SELECT
        l.id, l.status_version, l.creation_time, l.workspace_id, named.prebuild_id,
        row_number() OVER (PARTITION BY named.prebuild_id ORDER BY l.creation_time DESC, l.id DESC) AS rank
    FROM locked l
    CROSS JOIN LATERAL (
        SELECT p.id AS prebuild_id
        FROM prebuilt_workspace p
        WHERE p.build_workspace_id = l.workspace_id
        ORDER BY p.creation_time DESC, p.id DESC
        LIMIT 1
    ) named
),

-- The prebuilds that have not ended, and of which no newer instance speaks;
-- locked in the order of their ids.
aborted AS MATERIALIZED (
    SELECT
        s.id, s.creation_time, s.workspace_id, s.prebuild_id,
        coalesce(p.project_id, '') AS project_id, coalesce(p.organization_id, '') AS organization_id,
        -- The end is that of this instance, and final for it. Versions compare
        -- with those of the same instance only.
        CASE WHEN coalesce(p.instance_id, s.id) = s.id THEN greatest(p.status_version, s.status_version) ELSE s.status_version END AS status_version
    FROM (
        SELECT s.id, s.status_version, s.creation_time, s.workspace_id, s.prebuild_id
        FROM spoken s
        WHERE s.rank = 1
        ORDER BY s.prebuild_id
    ) s
    CROSS JOIN LATERAL (
        SELECT p.project_id, p.organization_id, p.status_version, p.instance_id
        FROM prebuilt_workspace p
        WHERE p.id = s.prebuild_id AND p.state NOT IN ('available', 'timeout', 'aborted', 'failed')
            AND (p.instance_id <> s.id AND (coalesce(p.instance_created, '-infinity'), p.instance_id) > (s.creation_time, s.id)) IS NOT TRUE
        FOR NO KEY UPDATE
    ) p
),

prebuild_written AS (
    UPDATE prebuilt_workspace p
    SET state = 'aborted', status_version = a.status_version, instance_id = a.id, instance_created = a.creation_time
    FROM aborted a
    WHERE p.id = a.prebuild_id
),

lifecycle AS (
    INSERT INTO trestle_lifecycle (event)
    SELECT jsonb_build_object(
        'event', 'workspace_stopped', 'messageId', 'bridge-wsstopped-' || l.id, 'userId', l.owner_id,
        'timestamp', l.stopped_time,
        'properties', jsonb_build_object('instanceId', l.id, 'workspaceId', l.workspace_id,
            'stoppingTime', l.stopping_time,
            'conditions', l.status -> 'conditions', 'timeout', l.status -> 'timeout'))
    FROM locked l
    WHERE $9::bool
),

told AS (
    INSERT INTO trestle_outbox (shard, epoch, owner, lane, seq, instances, prebuilds)
    SELECT $1, $2, $3, 0, $10::bigint, array_agg(l.id),
        (
            SELECT json_agg(json_build_object('status', 'aborted', 'prebuildID', a.prebuild_id, 'workspaceID', a.workspace_id,
                'projectID', a.project_id, 'organizationID', a.organization_id, 'headless', 'aborted'))
            FROM aborted a
        )
    FROM locked l
    HAVING count(*) > 0
)

-- Whether we lead; the rows that were stopped; the prebuilds that were aborted.
SELECT 0 AS kind, a.leads, NULL::uuid AS id, NULL::text AS phase, NULL::text AS owner_id, NULL::text AS workspace_id,
    NULL::text AS project_id, NULL::text AS organization_id
FROM allowed a
UNION ALL
SELECT 1, NULL, l.id, l.phase, l.owner_id, l.workspace_id, NULL, NULL
FROM locked l
UNION ALL
SELECT 2, NULL, a.prebuild_id, NULL, NULL, a.workspace_id, a.project_id, a.organization_id
FROM aborted a
