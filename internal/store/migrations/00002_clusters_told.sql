-- Every change of the registry of clusters is told to all replicas in the
-- commit that makes it, whoever makes it: the service, or an operator by hand.

-- +goose Up

-- +goose StatementBegin
CREATE FUNCTION trestle_tell_clusters() RETURNS trigger
    LANGUAGE plpgsql
AS $$
BEGIN
    -- Without a text: those who hear it read the table, and several changes
    -- in one commit are told once.
    NOTIFY trestle_clusters;
    RETURN NULL;
END
$$;
-- +goose StatementEnd

-- By row, so that a statement that changes none tells nothing.
CREATE TRIGGER trestle_tell_clusters
    AFTER INSERT OR UPDATE OR DELETE ON workspace_cluster
    FOR EACH ROW EXECUTE FUNCTION trestle_tell_clusters();
