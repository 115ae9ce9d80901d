{{- /*
One batch of changes, written in one statement and so in one commit.

The template is executed once for each variant, a combination of parts; see
statements.go:

  Folded     a change has several rungs
  Stops      a change can stop its instance
  Prebuilds  a change speaks of a prebuild
  Lifecycle  events for analytics are recorded

Two rules for whoever changes it:

- Two sets of hundreds of rows are never joined to each other: the planner
  knows the size of neither, and a nested loop over both is quadratic. A set is
  joined to a table by key only: in a LATERAL subquery that cannot be merged
  with its surroundings (it locks, or has a LIMIT), or, where the table is the
  one that is written, by BETWEEN a key AND the same key, which no other join
  can use. The planner would else start from the table whenever it believes it
  to be small, and what it believed when the tables were empty it goes on
  doing. A test looks at the plans.
- Every value that is written comes from the row as it was locked, never from
  the row as the statement's snapshot saw it: others write these rows too.

Outcomes are numbered as the Go type Outcome is.
*/ -}}
WITH

-- Which claims hold: for each the name of its cluster, null if refused. The row
-- is locked until the commit and keeps a new epoch from beginning before it; an
-- epoch that began while we waited is seen, since the condition is checked again
-- on the row that was waited for. Locked in the order given.
--
-- A lock FOR SHARE does not queue behind one who waits to change the row: writers
-- that take turns would keep a new epoch out for as long as they like. Advisory
-- locks do queue, so each writer takes one first. See raiseSQL.
fence AS MATERIALIZED (
    SELECT array_agg(CASE WHEN held.epoch IS NOT NULL THEN claim.cluster END ORDER BY claim.ordinal) AS clusters
    FROM (
        SELECT u.shard, u.epoch, u.owner, u.cluster, u.ordinal,
            pg_advisory_xact_lock_shared(hashtextextended(u.shard, 0)) IS NOT NULL AS queued
        FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[])
            WITH ORDINALITY AS u (shard, epoch, owner, cluster, ordinal)
        OFFSET 0
    ) claim
    LEFT JOIN LATERAL (
        SELECT f.epoch
        FROM trestle_fence f
        WHERE claim.queued AND f.shard = claim.shard AND f.epoch = claim.epoch AND f.owner = claim.owner
        FOR SHARE
    ) held ON true
),

-- What becomes of each row, every new value with it. From the inside out: the
-- row is locked, the rung is chosen, the outcome judged, the values computed.
judged AS MATERIALIZED (
    SELECT
        n.position, n.fence, n.id, n.version, n.ide_url, n.hash,
        CASE
            -- Unversioned, and nothing differs. Versioned changes differ in
            -- their version at least.
            WHEN n.outcome = 1 AND n.version = 0 AND n.status = n.old_status AND n.phase = n.old_phase
                AND n.ide_url IS NOT DISTINCT FROM n.old_ide_url
                AND (n.deployed, n.started, n.stopping, n.stopped)
                    IS NOT DISTINCT FROM (n.old_deployed, n.old_started, n.old_stopping, n.old_stopped)
            THEN 2
            ELSE n.outcome
        END AS outcome,
        n.old_version, n.workspace_id, n.owner_id, n.region, n.creation, n.phase,
        n.deployed, n.started, n.stopping, n.stopped, n.status,
        n.outcome = 1 AND n.running_at IS NOT NULL AND n.old_started IS NULL AS starts,
        n.stop_at,
        n.outcome = 1 AND (n.revived OR n.cleared AND (n.old_stopping IS NOT NULL OR n.old_stopped IS NOT NULL)) AS revives,
        n.outcome = 1 AND n.failed IS NULL AND n.old_conditions ? 'failed' AS keeps_failed,
        -- STOPPING on a row that is stopped: only a STOPPED has a stopped_at.
        n.outcome = 1 AND n.old_phase = 'stopped' AND NOT n.cleared
            AND n.stopping_at IS NOT NULL AND n.stopped_at IS NULL AS ignores_stopping,
        CASE WHEN n.outcome = 1 AND n.conditions ? 'firstUserActivity' AND NOT n.old_conditions ? 'firstUserActivity'
            THEN n.conditions ->> 'firstUserActivity' END AS first_activity,
        CASE WHEN n.running_at IS NOT NULL
            THEN coalesce(n.old_conditions ->> 'neededImageBuild' = 'true', false) END AS built_image,
        n.metrics, coalesce(n.measured, n.old_measured) AS measured, n.measures
        {{if .Prebuilds}}, n.floor, n.steps{{end}}
    FROM (
        SELECT
            r.position, r.fence, r.id, r.version, r.ide_url, r.hash, r.outcome, r.conditions,
            r.workspace_id, r.owner_id, r.region, r.old_creation AS creation,
            r.old_version, r.old_deployed, r.old_started, r.old_stopping, r.old_stopped, r.old_ide_url, r.old_phase,
            r.old_status, r.old_conditions,
            r.cleared, r.revived, r.failed, r.running_at, r.stopping_at, r.stopped_at,
            r.new_phase AS phase,
            coalesce(r.old_deployed, r.deployed_at) AS deployed,
            coalesce(r.old_started, r.running_at) AS started,
            CASE
                WHEN r.cleared THEN r.stopping_at
                WHEN r.old_phase = 'stopped' THEN coalesce(r.old_stopping, r.stopped_at)
                ELSE coalesce(r.old_stopping, r.stopping_at)
            END AS stopping,
            CASE WHEN r.cleared THEN r.stopped_at ELSE coalesce(r.old_stopped, r.stopped_at) END AS stopped,
            -- When the stop actions are due, if they are.
            CASE WHEN r.outcome = 1 THEN
                coalesce(CASE WHEN r.old_stopped IS NULL THEN r.open_stop_at END, r.later_stop_at)
            END AS stop_at,
            -- Keys that nobody speaks of survive: what is new is laid over
            -- what is there. Every operation on a document costs a good part
            -- of what the rest of the row costs, hence the shortcuts, which
            -- nearly all rows take.
            CASE WHEN r.outcome = 1 THEN
                -- Of these the first value is kept. Mostly the row has them
                -- all, or lacks them with all that is around them.
                CASE
                    WHEN r.kept IS NULL OR r.old_status @> r.kept THEN r.old_status
                    WHEN (r.kept || r.old_status) @> r.kept THEN r.kept || r.old_status
                    ELSE trestle_fill(r.old_status, r.kept)
                END
                || CASE
                    -- The document comes with conditions and a phase.
                    WHEN r.new_phase = r.document_phase AND r.failed IS NULL THEN
                        CASE
                            WHEN r.other_conditions = '{}' THEN r.document
                            ELSE jsonb_set(r.document, '{conditions}', r.other_conditions || r.conditions)
                        END
                    ELSE r.document || jsonb_build_object(
                        'phase', r.new_phase,
                        'conditions', r.other_conditions || r.conditions
                            || CASE WHEN r.failed IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('failed', r.failed) END)
                END
            END AS status,
            r.metrics, r.measured, r.old_measured,
            (r.metrics IS NOT NULL AND r.measured <> r.old_measured)::int AS measures
            {{if .Prebuilds}}, r.floor, r.steps{{end}}
        FROM (
            SELECT
                c.position, c.fence, c.id, c.version, c.ide_url, c.hash, c.document, c.document -> 'conditions' AS conditions,
                c.workspace_id, coalesce(c.owner_id::text, '') AS owner_id, c.region,
                c.old_creation, c.old_version, c.old_deployed, c.old_started, c.old_stopping, c.old_stopped, c.old_ide_url, c.old_phase,
                c.old_status,
                c.old_conditions,
                -- Those that no update speaks of, and failed.
                c.old_conditions - $19::text[] AS other_conditions,
                CASE
                    WHEN c.cluster IS NULL THEN 6
                    WHEN c.workspace_id IS NULL THEN 4
                    WHEN c.region NOT IN (c.cluster, '', $20::text) THEN 5
                    WHEN NOT c.counts THEN 3
                    WHEN c.repeats THEN 2
                    ELSE 1
                END AS outcome,
                CASE
                    WHEN c.phase IS NULL OR c.old_phase = 'stopped' AND NOT c.cleared THEN c.old_phase
                    ELSE c.phase
                END AS new_phase,
                c.document_phase, c.cleared, c.revived, c.failed, c.kept,
                c.deployed_at, c.running_at, c.stopping_at, c.stopped_at, c.open_stop_at, c.later_stop_at,
                c.metrics, c.measured, c.old_measured
                {{if .Prebuilds}}, c.floor, c.steps{{end}}
            FROM (
                SELECT
                    l.position, l.fence, l.cluster, l.id, l.version, l.ide_url, l.hash, l.document, l.phase AS document_phase,
                    l.workspace_id, l.owner_id, l.region, l.floor, l.repeats,
                    l.old_creation, l.old_version, l.old_deployed, l.old_started, l.old_stopping, l.old_stopped,
                    l.old_ide_url, l.old_phase, l.old_status, l.old_conditions,
                    {{- if .Folded}}
                    l.first OR f.version IS NOT NULL AS counts,
                    CASE WHEN l.first THEN l.phase ELSE f.phase END AS phase,
                    CASE WHEN l.first THEN l.cleared ELSE f.cleared END AS cleared,
                    CASE WHEN l.first THEN l.revived ELSE f.revived END AS revived,
                    CASE WHEN l.first THEN l.failed ELSE f.failed END AS failed,
                    CASE WHEN l.first THEN l.kept ELSE f.kept END AS kept,
                    CASE WHEN l.first THEN l.deployed_at ELSE f.deployed_at END AS deployed_at,
                    CASE WHEN l.first THEN l.running_at ELSE f.running_at END AS running_at,
                    CASE WHEN l.first THEN l.stopping_at ELSE f.stopping_at END AS stopping_at,
                    CASE WHEN l.first THEN l.stopped_at ELSE f.stopped_at END AS stopped_at,
                    CASE WHEN l.first THEN l.open_stop_at ELSE f.open_stop_at END AS open_stop_at,
                    CASE WHEN l.first THEN l.later_stop_at ELSE f.later_stop_at END AS later_stop_at,
                    CASE WHEN l.first THEN l.metrics ELSE f.metrics END AS metrics,
                    CASE WHEN l.first THEN l.measured ELSE f.measured END AS measured,
                    {{- else}}
                    l.first AS counts, l.phase, l.cleared, false AS revived, l.failed, l.kept,
                    l.deployed_at, l.running_at, l.stopping_at, l.stopped_at,
                    l.stopped_at AS open_stop_at, NULL::timestamptz AS later_stop_at,
                    l.metrics, l.measured,
                    {{- end}}
                    l.old_measured
                    {{if .Prebuilds}}, l.steps{{end}}
                FROM (
                    SELECT
                        e.position, e.fence, e.cluster, e.id, e.version, e.ide_url, e.hash, e.document,
                        e.phase, e.cleared, e.failed, e.kept, e.deployed_at, e.running_at, e.stopping_at, e.stopped_at,
                        {{if .Folded}}e.revived, e.open_stop_at, e.later_stop_at, e.further,{{end}}
                        e.metrics, e.measured, i.measured AS old_measured,
                        {{if .Prebuilds}}e.steps,{{end}}
                        i.workspace_id, i.region, i.creation_time AS old_creation,
                        i.deployed_time AS old_deployed, i.started_time AS old_started,
                        i.stopping_time AS old_stopping, i.stopped_time AS old_stopped,
                        i.ide_url AS old_ide_url, i.phase AS old_phase,
                        -- Others write the document too; what is no object is
                        -- none.
                        CASE WHEN jsonb_typeof(i.status) = 'object' THEN i.status ELSE '{}' END AS old_status,
                        CASE WHEN jsonb_typeof(i.status -> 'conditions') = 'object' THEN i.status -> 'conditions' ELSE '{}' END AS old_conditions,
                        i.status_version AS old_version, i.floor,
                        -- Equal to what the row was told last, but for the
                        -- version: another owner has written it. Where this
                        -- one had heard the instance before, it has compared.
                        e.first AND i.heard = hashint8extended(e.hash, i.status_version) AND NOT i.swept AS repeats,
                        CASE WHEN e.rung = 0 THEN i.status_version = 0 ELSE e.rung > i.floor END AS first,
                        (SELECT w.owner_id FROM workspace w WHERE w.id = i.workspace_id) AS owner_id
                    FROM (
                        SELECT
                            u.position, u.fence, (SELECT clusters FROM fence)[u.fence] AS cluster, u.id, u.version, u.ide_url, u.hash, u.first, u.document,
                            u.phase, u.cleared, u.failed, u.kept, u.deployed_at, u.running_at, u.stopping_at, u.stopped_at,
                            {{if .Folded}}u.revived, u.open_stop_at, u.later_stop_at, u.further,{{end}}
                            u.metrics, u.measured,
                            {{if .Prebuilds}}u.steps,{{end}}
                            {{if .Folded}}u.rung{{else}}u.version AS rung{{end}}
                        -- In the list of a SELECT the arrays are taken apart
                        -- side by side; as a table each would first be copied.
                        FROM (
                            SELECT
                                unnest($5::int[]) AS position, unnest($6::int[]) AS fence, unnest($7::uuid[]) AS id,
                                unnest($8::bigint[]) AS version, unnest($9::text[]) AS ide_url, unnest($10::jsonb[]) AS document,
                                unnest($11::text[]) AS phase, unnest($12::bool[]) AS cleared, unnest($13::text[]) AS failed,
                                unnest($14::jsonb[]) AS kept, unnest($15::timestamptz[]) AS deployed_at,
                                unnest($16::timestamptz[]) AS running_at, unnest($17::timestamptz[]) AS stopping_at,
                                unnest($18::timestamptz[]) AS stopped_at, unnest($28::bigint[]) AS hash, unnest($29::bool[]) AS first,
                                unnest($30::text[]) AS metrics, unnest($31::bigint[]) AS measured
                                {{if .Folded}}, unnest({{arg "rung"}}::bigint[]) AS rung, unnest({{arg "revived"}}::bool[]) AS revived,
                                unnest({{arg "open_stop_at"}}::timestamptz[]) AS open_stop_at,
                                unnest({{arg "later_stop_at"}}::timestamptz[]) AS later_stop_at, unnest({{arg "further"}}::text[]) AS further{{end}}
                                {{if .Prebuilds}}, unnest({{arg "steps"}}::jsonb[]) AS steps{{end}}
                        ) u
                        OFFSET 0
                    ) e
                    -- Locked in the order given, which is that of the ids.
                    LEFT JOIN LATERAL (
                        SELECT i.workspace_id::text, coalesce(i.region::text, '') AS region, i.creation_time, i.deployed_time, i.started_time,
                            i.stopping_time, i.stopped_time, i.ide_url, i.phase, i.status_version, i.status, i.heard, i.swept, i.measured,
                            -- A swept row counts as one version older than it
                            -- is: what it held, heard again, revives it.
                            i.status_version - (i.swept AND i.status_version > 0)::int AS floor
                        FROM workspace_instance i
                        WHERE i.id = e.id AND e.cluster IS NOT NULL
                        FOR NO KEY UPDATE
                    ) i ON true
                    OFFSET 0
                ) l
                {{- if .Folded}}
                -- The first rung above the stored version has the effect. It
                -- nearly always is the first of all, which comes in columns; the
                -- others come as text, since to parse them costs as much as
                -- writing the row.
                LEFT JOIN LATERAL (
                    SELECT s.version, s.phase, s.cleared, s.revived, s.failed, s.kept, s.metrics, s.measured,
                        s.deployed_at, s.running_at, s.stopping_at, s.stopped_at, s.open_stop_at, s.later_stop_at
                    FROM jsonb_to_recordset(CASE WHEN NOT l.first THEN l.further::jsonb END) AS s (
                        version bigint, phase text, cleared bool, revived bool, failed text, kept jsonb, metrics text, measured bigint,
                        deployed_at timestamptz, running_at timestamptz, stopping_at timestamptz,
                        stopped_at timestamptz, open_stop_at timestamptz, later_stop_at timestamptz
                    )
                    WHERE s.version > l.floor
                    ORDER BY s.version
                    LIMIT 1
                ) f ON true
                {{- end}}
            ) c
            OFFSET 0
        ) r
        OFFSET 0
    ) n
),

written AS (
    UPDATE workspace_instance i
    SET status_version = j.version, heard = hashint8extended(j.hash, j.version), swept = false, phase = j.phase, ide_url = j.ide_url,
        deployed_time = j.deployed, started_time = j.started, stopping_time = j.stopping, stopped_time = j.stopped,
        status = j.status, measured = j.measured
    FROM judged j
    WHERE i.id BETWEEN j.id AND j.id AND j.outcome = 1
),

-- An instance tells the same metrics over and over, so the row remembers what
-- it was told last. Absent values never overwrite; containment takes a shorter
-- array for a part of a longer one, but there are no arrays in what we are told.
measured AS (
    INSERT INTO workspace_instance_metrics AS m (instance_id, metrics)
    SELECT j.id, j.metrics::jsonb
    FROM judged j
    WHERE j.outcome IN (1, 2) AND j.measures = 1
    ON CONFLICT (instance_id) DO UPDATE SET metrics = CASE
        WHEN (m.metrics || excluded.metrics) @> m.metrics THEN m.metrics || excluded.metrics
        ELSE trestle_merge(m.metrics, excluded.metrics)
    END
    WHERE NOT m.metrics @> excluded.metrics
),

{{- if .Stops}}

-- The tokens of an instance that has stopped. A range of names, for an index
-- to find: '.' follows '-' in byte order.
revoked AS (
    DELETE FROM gitpod_token t
    USING judged j
    CROSS JOIN LATERAL (
        SELECT k.token_hash
        FROM gitpod_token k
        WHERE k.user_id = j.owner_id
            AND k.name COLLATE "C" >= j.id::text || '-' AND k.name COLLATE "C" < j.id::text || '.'
        ORDER BY k.name COLLATE "C"
        OFFSET 0
    ) found
    WHERE t.token_hash BETWEEN found.token_hash AND found.token_hash AND j.outcome = 1 AND j.stop_at IS NOT NULL
),
{{- end}}

{{- if .Prebuilds}}

-- What is said of prebuilds. Of two instances of one workspace the newer has
-- the word.
spoken AS MATERIALIZED (
    SELECT
        j.position, j.fence, j.id, j.creation, j.old_version, j.floor, j.workspace_id, j.steps, named.prebuild_id,
        row_number() OVER (PARTITION BY named.prebuild_id ORDER BY j.creation DESC, j.id DESC) AS rank
    FROM judged j
    LEFT JOIN LATERAL (
        SELECT p.id AS prebuild_id
        FROM prebuilt_workspace p
        WHERE p.build_workspace_id = j.workspace_id
        ORDER BY p.creation_time DESC, p.id DESC
        LIMIT 1
    ) named ON true
    WHERE j.outcome IN (1, 2) AND j.steps IS NOT NULL
),

-- Their rows, locked in the order of their ids.
prebuild AS MATERIALIZED (
    SELECT
        s.position, s.fence, s.id, s.creation, s.old_version, s.floor, s.workspace_id, s.steps, s.prebuild_id,
        p.project_id, p.organization_id, p.state, p.status_version, p.error, p.snapshot,
        -- The instance that the prebuild's version speaks of: a newer one
        -- than this (nothing we say counts), this one (its versions compare,
        -- its end binds), or an older one or none (everything counts).
        p.instance_id <> s.id AND (coalesce(p.instance_created, '-infinity'), p.instance_id) > (s.creation, s.id) AS newer_speaks,
        CASE WHEN p.instance_id IS NULL THEN p.status_version > 0 ELSE p.instance_id = s.id END AS bound
    FROM (
        SELECT position, fence, id, creation, old_version, floor, workspace_id, steps, prebuild_id
        FROM spoken
        WHERE rank = 1 AND prebuild_id IS NOT NULL
        ORDER BY prebuild_id
    ) s
    CROSS JOIN LATERAL (
        SELECT p.project_id, p.organization_id, p.state, p.status_version, p.error, p.snapshot, p.instance_id, p.instance_created
        FROM prebuilt_workspace p
        WHERE p.id = s.prebuild_id
        FOR NO KEY UPDATE
    ) p
),

decided AS MATERIALIZED (
    SELECT
        p.position, p.fence, p.id, p.creation, p.workspace_id, p.prebuild_id,
        coalesce(p.project_id::text, '') AS project_id, coalesce(p.organization_id::text, '') AS organization_id,
        end_state.state::text AS state,
        coalesce(last_word.error, p.error) AS error,
        coalesce(last_word.snapshot, p.snapshot) AS snapshot,
        last_word.headless,
        counting.version,
        CASE
            WHEN p.newer_speaks THEN 5
            WHEN counting.version IS NULL THEN 3
            WHEN end_state.state = p.state
                AND coalesce(last_word.error, p.error, '') = coalesce(p.error, '')
                AND coalesce(last_word.snapshot, p.snapshot, '') = coalesce(p.snapshot, '')
            THEN 2
            ELSE 1
        END AS outcome,
        end_state.state <> p.state AND end_state.state IN ('available', 'timeout', 'aborted', 'failed') AS completes
    FROM prebuild p
    -- The steps that count, in their order.
    CROSS JOIN LATERAL (
        SELECT
            max(s.version) AS version,
            (array_agg(s.state ORDER BY s.ordinal) FILTER (WHERE s.state IN ('available', 'timeout', 'aborted', 'failed')))[1] AS first_end,
            (array_agg(s.state ORDER BY s.ordinal DESC))[1] AS last_state
        FROM ROWS FROM (jsonb_to_recordset(p.steps) AS (version bigint, state text)) WITH ORDINALITY AS s (version, state, ordinal)
        WHERE (s.version > p.floor OR s.version = 0 AND p.old_version = 0)
            AND (NOT p.bound OR p.status_version = 0 OR s.version > p.status_version)
    ) counting
    -- An end is final: the one that the row has reached, or the first of ours.
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN p.bound AND p.state IN ('available', 'timeout', 'aborted', 'failed') THEN p.state
            ELSE coalesce(counting.first_end, counting.last_state, p.state)
        END AS state
        OFFSET 0
    ) end_state
    LEFT JOIN LATERAL (
        SELECT s.error, s.snapshot, s.headless
        FROM ROWS FROM (jsonb_to_recordset(p.steps) AS (version bigint, state text, error text, snapshot text, headless text))
            WITH ORDINALITY AS s (version, state, error, snapshot, headless, ordinal)
        WHERE s.state = end_state.state AND NOT coalesce(p.newer_speaks, false)
            AND (s.version > p.floor OR s.version = 0 AND p.old_version = 0)
            AND (NOT p.bound OR p.status_version = 0 OR s.version > p.status_version)
        ORDER BY s.ordinal DESC
        LIMIT 1
    ) last_word ON true
),

prebuild_written AS (
    UPDATE prebuilt_workspace p
    SET state = d.state, error = d.error, snapshot = d.snapshot,
        status_version = d.version, instance_id = d.id, instance_created = d.creation
    FROM decided d
    WHERE p.id BETWEEN d.prebuild_id AND d.prebuild_id AND d.outcome IN (1, 2)
),
{{- end}}

{{- if .Lifecycle}}

lifecycle AS (
    INSERT INTO trestle_lifecycle (event)
    SELECT jsonb_build_object(
        'event', 'workspace_running', 'messageId', 'bridge-wsrun-' || j.id, 'userId', j.owner_id,
        'timestamp', j.started,
        'properties', jsonb_build_object('instanceId', j.id, 'workspaceId', j.workspace_id))
    FROM judged j
    WHERE j.starts
    UNION ALL
    SELECT jsonb_build_object(
        'event', 'workspace_stopped', 'messageId', 'bridge-wsstopped-' || j.id, 'userId', j.owner_id,
        'timestamp', j.stop_at,
        'properties', jsonb_build_object('instanceId', j.id, 'workspaceId', j.workspace_id,
            'stoppingTime', coalesce(j.stopping, j.stop_at),
            'conditions', j.status -> 'conditions', 'timeout', j.status -> 'timeout'))
    FROM judged j
    WHERE j.stop_at IS NOT NULL
),
{{- end}}

-- What there is to tell, one row for each shard.
told AS (
    INSERT INTO trestle_outbox (shard, epoch, owner, lane, seq, instances{{if .Prebuilds}}, prebuilds{{end}})
    SELECT ($1::text[])[n.fence], ($2::bigint[])[n.fence], ($3::text[])[n.fence], $21::int, $22::bigint,
        {{- if .Prebuilds}}
        coalesce(array_agg(n.instance) FILTER (WHERE n.instance IS NOT NULL), '{}'),
        json_agg(n.prebuild) FILTER (WHERE n.prebuild IS NOT NULL)
        {{- else}}
        array_agg(n.instance)
        {{- end}}
    FROM (
        SELECT j.fence, j.id AS instance{{if .Prebuilds}}, NULL::json AS prebuild{{end}}
        FROM judged j
        WHERE j.outcome = 1
        {{- if .Prebuilds}}
        UNION ALL
        SELECT d.fence, NULL,
            json_build_object('status', d.state, 'prebuildID', d.prebuild_id, 'workspaceID', d.workspace_id,
                'projectID', d.project_id, 'organizationID', d.organization_id, 'headless', d.headless)
        FROM decided d
        WHERE d.outcome = 1
        {{- end}}
    ) n
    GROUP BY n.fence
),

-- What has been published since the last batch.
published AS (
    DELETE FROM trestle_outbox o
    USING unnest($23::text[], $24::bigint[], $25::bigint[], $26::int[], $27::text[]) AS p (shard, epoch, seq, lane, owner)
    CROSS JOIN LATERAL (
        SELECT k.ctid AS place
        FROM trestle_outbox k
        WHERE k.shard = p.shard AND k.epoch = p.epoch AND k.seq = p.seq AND k.lane = p.lane AND k.owner = p.owner
        LIMIT 1
    ) found
    WHERE o.ctid = found.place
)

SELECT j.position, j.outcome, CASE WHEN j.outcome = 1 THEN j.version ELSE j.old_version END AS stored,
    j.owner_id, j.workspace_id,
    CASE WHEN j.outcome = 5 OR j.starts OR j.first_activity IS NOT NULL THEN j.region END AS region,
    j.starts, j.stop_at IS NOT NULL AS stops, j.revives, j.keeps_failed, j.ignores_stopping,
    j.creation, j.started, j.first_activity, j.built_image
    {{if .Prebuilds}}
    , NULL::int AS prebuild_outcome, NULL::text AS state, NULL::uuid AS prebuild_id,
    NULL::text AS project_id, NULL::text AS organization_id, NULL::text AS headless, NULL::bool AS completes
    {{end}}
FROM judged j
{{- if .Prebuilds}}
UNION ALL
SELECT d.position, NULL, NULL, NULL, d.workspace_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    d.outcome, d.state, d.prebuild_id, d.project_id, d.organization_id, d.headless, d.completes
FROM decided d
UNION ALL
SELECT s.position, NULL, NULL, NULL, s.workspace_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    CASE WHEN s.prebuild_id IS NULL THEN 4 ELSE 5 END, NULL, s.prebuild_id, NULL, NULL, NULL, NULL
FROM spoken s
WHERE s.prebuild_id IS NULL OR s.rank > 1
{{- end}}
