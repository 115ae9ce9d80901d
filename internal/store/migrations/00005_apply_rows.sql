-- A small batch costs the statement of apply.sql more to begin and to end than
-- to do. This does the same row by row, with small plans that are kept.
--
-- It knows changes of one update each that speak of no prebuild; what it does
-- must be what apply.sql does, to which its comments apply. Whoever changes the
-- rules makes a new function, with a new number: the version before this one
-- goes on calling the old one.

-- +goose Up

-- +goose StatementBegin
CREATE FUNCTION trestle_apply_1(
    shards text[], epochs bigint[], owners text[], clusters text[],
    positions int[], fences int[], ids uuid[], versions bigint[], ide_urls text[], documents jsonb[],
    phases text[], cleareds bool[], faileds text[], kepts jsonb[],
    deployed_ats timestamptz[], running_ats timestamptz[], stopping_ats timestamptz[], stopped_ats timestamptz[],
    spoken text[], installation text, lane int, seq bigint,
    published_shards text[], published_epochs bigint[], published_seqs bigint[], published_lanes int[], published_owners text[],
    hashes bigint[], firsts bool[], metrics text[], measureds bigint[], lifecycle bool
) RETURNS TABLE (
    "position" int, outcome int, stored bigint, owner_id text, workspace_id text, region text,
    starts bool, stops bool, revives bool, keeps_failed bool, ignores_stopping bool,
    creation timestamptz, started timestamptz, first_activity text, built_image bool
)
    LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    held        bool[];
    told        uuid[];
    told_fences int[];
    part        uuid[];
    old         record;
    old_status  jsonb;
    old_conditions jsonb;
    other_conditions jsonb;
    conditions  jsonb;
    new_phase   text;
    new_status  jsonb;
    deployed    timestamptz;
    begun       timestamptz;
    stopping    timestamptz;
    stopped     timestamptz;
    stop_at     timestamptz;
    verdict     int;
    is_first    bool;
    own         text;
BEGIN
    FOR k IN 1 .. cardinality(shards) LOOP
        PERFORM pg_advisory_xact_lock_shared(hashtextextended(shards[k], 0));
        PERFORM FROM trestle_fence f WHERE f.shard = shards[k] AND f.epoch = epochs[k] AND f.owner = owners[k] FOR SHARE;
        held[k] := FOUND;
    END LOOP;

    FOR n IN 1 .. cardinality(ids) LOOP
        stop_at := NULL;
        new_status := NULL;
        IF NOT held[fences[n]] THEN
            RETURN QUERY SELECT positions[n], 6, NULL::bigint, ''::text, NULL::text, NULL::text,
                false, false, false, false, false, NULL::timestamptz, NULL::timestamptz, NULL::text, NULL::bool;
            CONTINUE;
        END IF;
        -- The types are named, for the plans outlive a change of those of the
        -- columns.
        SELECT i.workspace_id::text AS workspace_id, coalesce(i.region::text, '') AS region, i.creation_time::timestamptz AS creation_time,
            i.deployed_time::timestamptz AS deployed_time, i.started_time::timestamptz AS started_time,
            i.stopping_time::timestamptz AS stopping_time, i.stopped_time::timestamptz AS stopped_time,
            i.ide_url::text AS ide_url, i.phase::text AS phase, i.status_version::bigint AS status_version, i.status::jsonb AS status,
            i.heard, i.swept, i.measured,
            (SELECT w.owner_id::text FROM workspace w WHERE w.id = i.workspace_id) AS owner_id
        INTO old
        FROM workspace_instance i
        WHERE i.id = ids[n]
        FOR NO KEY UPDATE OF i;
        IF NOT FOUND THEN
            RETURN QUERY SELECT positions[n], 4, NULL::bigint, ''::text, NULL::text, NULL::text,
                false, false, false, false, false, NULL::timestamptz, NULL::timestamptz, NULL::text, NULL::bool;
            CONTINUE;
        END IF;
        own := coalesce(old.owner_id, '');

        verdict := CASE
            WHEN old.region NOT IN (clusters[fences[n]], '', installation) THEN 5
            WHEN NOT CASE
                WHEN versions[n] = 0 THEN old.status_version = 0
                ELSE versions[n] > old.status_version - (old.swept AND old.status_version > 0)::int
            END THEN 3
            WHEN firsts[n] AND old.heard = hashint8extended(hashes[n], old.status_version) AND NOT old.swept THEN 2
            ELSE 1
        END;

        deployed := coalesce(old.deployed_time, deployed_ats[n]);
        begun := coalesce(old.started_time, running_ats[n]);
        IF verdict = 1 THEN
            old_status := CASE WHEN jsonb_typeof(old.status) = 'object' THEN old.status ELSE '{}' END;
            old_conditions := CASE WHEN jsonb_typeof(old_status -> 'conditions') = 'object' THEN old_status -> 'conditions' ELSE '{}' END;
            other_conditions := old_conditions - spoken;
            conditions := documents[n] -> 'conditions';
            new_phase := CASE
                WHEN phases[n] IS NULL OR old.phase = 'stopped' AND NOT cleareds[n] THEN old.phase
                ELSE phases[n]
            END;
            stopping := CASE
                WHEN cleareds[n] THEN stopping_ats[n]
                WHEN old.phase = 'stopped' THEN coalesce(old.stopping_time, stopped_ats[n])
                ELSE coalesce(old.stopping_time, stopping_ats[n])
            END;
            stopped := CASE WHEN cleareds[n] THEN stopped_ats[n] ELSE coalesce(old.stopped_time, stopped_ats[n]) END;
            new_status := CASE
                    WHEN kepts[n] IS NULL OR old_status @> kepts[n] THEN old_status
                    WHEN (kepts[n] || old_status) @> kepts[n] THEN kepts[n] || old_status
                    ELSE trestle_fill(old_status, kepts[n])
                END
                || CASE
                    WHEN new_phase = phases[n] AND faileds[n] IS NULL THEN
                        CASE
                            WHEN other_conditions = '{}' THEN documents[n]
                            ELSE jsonb_set(documents[n], '{conditions}', other_conditions || conditions)
                        END
                    ELSE documents[n] || jsonb_build_object(
                        'phase', new_phase,
                        'conditions', other_conditions || conditions
                            || CASE WHEN faileds[n] IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('failed', faileds[n]) END)
                END;
            IF versions[n] = 0 AND new_status = old.status AND new_phase = old.phase
                AND ide_urls[n] IS NOT DISTINCT FROM old.ide_url
                AND (deployed, begun, stopping, stopped)
                    IS NOT DISTINCT FROM (old.deployed_time, old.started_time, old.stopping_time, old.stopped_time)
            THEN
                verdict := 2;
            END IF;
        END IF;

        IF verdict IN (1, 2) AND metrics[n] IS NOT NULL AND measureds[n] <> old.measured THEN
            INSERT INTO workspace_instance_metrics AS m (instance_id, metrics)
            VALUES (ids[n], metrics[n]::jsonb)
            ON CONFLICT (instance_id) DO UPDATE SET metrics = CASE
                WHEN (m.metrics || excluded.metrics) @> m.metrics THEN m.metrics || excluded.metrics
                ELSE trestle_merge(m.metrics, excluded.metrics)
            END
            WHERE NOT m.metrics @> excluded.metrics;
        END IF;

        IF verdict <> 1 THEN
            RETURN QUERY SELECT positions[n], verdict, old.status_version, own, old.workspace_id, CASE WHEN verdict = 5 THEN old.region END,
                false, false, false, false, false, old.creation_time, begun, NULL::text,
                CASE WHEN running_ats[n] IS NOT NULL THEN false END;
            CONTINUE;
        END IF;

        UPDATE workspace_instance i
        SET status_version = versions[n], heard = hashint8extended(hashes[n], versions[n]), swept = false, phase = new_phase, ide_url = ide_urls[n],
            deployed_time = deployed, started_time = begun, stopping_time = stopping, stopped_time = stopped,
            status = new_status, measured = coalesce(measureds[n], old.measured)
        WHERE i.id = ids[n];

        IF old.stopped_time IS NULL AND stopped_ats[n] IS NOT NULL THEN
            stop_at := stopped_ats[n];
            DELETE FROM gitpod_token t
            WHERE t.user_id = own
                AND t.name COLLATE "C" >= ids[n]::text || '-' AND t.name COLLATE "C" < ids[n]::text || '.';
        END IF;
        is_first := running_ats[n] IS NOT NULL AND old.started_time IS NULL;
        IF lifecycle AND is_first THEN
            INSERT INTO trestle_lifecycle (event)
            VALUES (jsonb_build_object(
                'event', 'workspace_running', 'messageId', 'bridge-wsrun-' || ids[n], 'userId', own, 'timestamp', begun,
                'properties', jsonb_build_object('instanceId', ids[n], 'workspaceId', old.workspace_id)));
        END IF;
        IF lifecycle AND stop_at IS NOT NULL THEN
            INSERT INTO trestle_lifecycle (event)
            VALUES (jsonb_build_object(
                'event', 'workspace_stopped', 'messageId', 'bridge-wsstopped-' || ids[n], 'userId', own, 'timestamp', stop_at,
                'properties', jsonb_build_object('instanceId', ids[n], 'workspaceId', old.workspace_id,
                    'stoppingTime', coalesce(stopping, stop_at),
                    'conditions', new_status -> 'conditions', 'timeout', new_status -> 'timeout')));
        END IF;

        told := told || ids[n];
        told_fences := told_fences || fences[n];
        RETURN QUERY SELECT positions[n], 1, versions[n], own, old.workspace_id,
            CASE WHEN is_first OR conditions ? 'firstUserActivity' AND NOT old_conditions ? 'firstUserActivity' THEN old.region END,
            is_first, stop_at IS NOT NULL,
            cleareds[n] AND (old.stopping_time IS NOT NULL OR old.stopped_time IS NOT NULL),
            faileds[n] IS NULL AND old_conditions ? 'failed',
            old.phase = 'stopped' AND NOT cleareds[n] AND stopping_ats[n] IS NOT NULL AND stopped_ats[n] IS NULL,
            old.creation_time, begun,
            CASE WHEN conditions ? 'firstUserActivity' AND NOT old_conditions ? 'firstUserActivity' THEN conditions ->> 'firstUserActivity' END,
            CASE WHEN running_ats[n] IS NOT NULL THEN coalesce(old_conditions ->> 'neededImageBuild' = 'true', false) END;
    END LOOP;

    FOR k IN 1 .. cardinality(shards) LOOP
        IF cardinality(shards) = 1 THEN
            part := told;
        ELSE
            part := ARRAY(SELECT u.id FROM unnest(told, told_fences) AS u (id, fence) WHERE u.fence = k);
        END IF;
        IF cardinality(part) > 0 THEN
            INSERT INTO trestle_outbox (shard, epoch, owner, lane, seq, instances)
            VALUES (shards[k], epochs[k], owners[k], trestle_apply_1.lane, trestle_apply_1.seq, part);
        END IF;
    END LOOP;

    FOR k IN 1 .. cardinality(published_shards) LOOP
        DELETE FROM trestle_outbox o
        WHERE o.shard = published_shards[k] AND o.epoch = published_epochs[k] AND o.seq = published_seqs[k]
            AND o.lane = published_lanes[k] AND o.owner = published_owners[k];
    END LOOP;
END
$$;
-- +goose StatementEnd
