DROP VIEW mirror.sync_runs, mirror.freshness, mirror.connections, mirror.tickets;
DO $$
DECLARE
    generated text;
BEGIN
    -- Per-account views are made by the daemon and go with the table that they show.
    FOR generated IN
        SELECT format('%I.%I', schemaname, viewname) FROM pg_views
        WHERE schemaname = 'mirror' AND viewname ~ '^hubspot_tickets_c[0-9]+$'
    LOOP
        EXECUTE 'DROP VIEW ' || generated;
    END LOOP;
END
$$;
DROP FUNCTION mirror.as_date, mirror.as_timestamptz, mirror.as_boolean, mirror.as_numeric;
DROP TABLE mirror.hubspot_properties, mirror.hubspot_owners, mirror.hubspot_pipeline_stages, mirror.hubspot_tickets;
DROP PROCEDURE fieldmirror.describe_mirror_table;
