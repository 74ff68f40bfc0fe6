-- What the mirror was before, what came and was not foreseen, and columns that are filled from `raw`.

CREATE TABLE mirror.changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    connection_id bigint NOT NULL,
    stream text NOT NULL,
    record_id text NOT NULL,
    op text NOT NULL CHECK (op IN ('update', 'delete', 'restore')),
    source_updated_at timestamptz,
    observed_at timestamptz NOT NULL DEFAULT now(),
    before jsonb NOT NULL,
    sync_run_id bigint
);
CREATE INDEX changes_record ON mirror.changes (connection_id, stream, record_id);
-- Rows lie in the order of time: the places of a period are all that is worth knowing.
CREATE INDEX changes_observed ON mirror.changes USING brin (observed_at) WITH (pages_per_range = 16, autosummarize = on);
COMMENT ON TABLE mirror.changes IS 'What rows were before they changed; only ever added to, and kept for the setting sync.history_kept. The first version of a record is no change';
COMMENT ON COLUMN mirror.changes.id IS 'Number of the change; changes of one stream of one connection are numbered in their order';
COMMENT ON COLUMN mirror.changes.connection_id IS 'mirror.connections.id';
COMMENT ON COLUMN mirror.changes.stream IS 'What changed, such as tickets';
COMMENT ON COLUMN mirror.changes.record_id IS 'Column id of the row that changed';
COMMENT ON COLUMN mirror.changes.op IS 'update: it has other values; delete: it was archived, deleted or merged away; restore: it is back';
COMMENT ON COLUMN mirror.changes.source_updated_at IS 'When the provider says that the version which made the change was modified; null for a deletion without a version';
COMMENT ON COLUMN mirror.changes.observed_at IS 'When the change came into the mirror';
COMMENT ON COLUMN mirror.changes.before IS 'The previous value of each column that has another one now; under raw, a JSON merge patch (RFC 7396) from the newer record to the older one';
COMMENT ON COLUMN mirror.changes.sync_run_id IS 'The run that brought it: mirror.sync_runs.id';

CREATE TABLE mirror.drift (
    connection_id bigint NOT NULL,
    stream text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('new_field', 'vanished_field', 'misfit', 'unknown_value')),
    field text NOT NULL,
    value text NOT NULL DEFAULT '',
    column_name text,
    count bigint NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    example text,
    record_id text,
    sync_run_id bigint,
    PRIMARY KEY (connection_id, stream, kind, field, value)
);
COMMENT ON TABLE mirror.drift IS 'What providers sent and this release does not foresee. Nothing of it is lost: it is in raw';
COMMENT ON COLUMN mirror.drift.connection_id IS 'mirror.connections.id';
COMMENT ON COLUMN mirror.drift.stream IS 'Where it came, such as tickets';
COMMENT ON COLUMN mirror.drift.kind IS 'new_field: a key that no record had while all were first read; vanished_field: a key that nearly every record had and none of the last 200 or more has; misfit: a value that is not of its column''s type, where it is null; unknown_value: a word that this release does not know';
COMMENT ON COLUMN mirror.drift.field IS 'Where in raw: a JSON pointer';
COMMENT ON COLUMN mirror.drift.value IS 'The word that is not known; otherwise empty';
COMMENT ON COLUMN mirror.drift.column_name IS 'The column that is filled from there; null where there is none';
COMMENT ON COLUMN mirror.drift.count IS 'Versions of records that had it when they were written; of a vanished field, those since that lack it; of a new field, those that brought it';
COMMENT ON COLUMN mirror.drift.first_seen_at IS 'When it was first noticed';
COMMENT ON COLUMN mirror.drift.last_seen_at IS 'When it was last noticed; a new field is noticed once';
COMMENT ON COLUMN mirror.drift.example IS 'What came; in the place of a text, and of a field that nobody knows, only its kind';
COMMENT ON COLUMN mirror.drift.record_id IS 'A record that had it';
COMMENT ON COLUMN mirror.drift.sync_run_id IS 'The run that last noticed it: mirror.sync_runs.id';

-- Which fields the records of a stream have, learned while everything is read for the first time.
CREATE TABLE fieldmirror.stream_fields (
    connection_id bigint NOT NULL,
    stream text NOT NULL,
    partition text NOT NULL DEFAULT '',
    known jsonb NOT NULL,
    PRIMARY KEY (connection_id, stream, partition),
    FOREIGN KEY (connection_id, stream, partition)
        REFERENCES fieldmirror.stream_state (connection_id, stream, partition) ON DELETE CASCADE
);

-- A text of JSON, as columns of text hold it: numbers and flags in their digits and words. Others have none.
CREATE FUNCTION fieldmirror.scalar_text(value jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN jsonb_typeof(value) IN ('string', 'number', 'boolean') THEN value #>> '{}' END;

-- What a column of this kind holds of a record, as text that its type reads; null where nothing is there or it does not
-- fit. The same rules as src/domain/values.rs; a test holds one to the other.
CREATE FUNCTION fieldmirror.column_text(record jsonb, kind text, pointer text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    path text[] := string_to_array(substr(pointer, 2), '/');
    value jsonb;
    plain text;
    items jsonb;
    part text;
BEGIN
    IF kind = 'text[]' AND '*' = ANY (path) THEN
        items := jsonb_build_array(record);
        FOREACH part IN ARRAY path LOOP
            SELECT coalesce(jsonb_agg(inner_item), '[]') INTO items
            FROM jsonb_array_elements(items) item
            CROSS JOIN LATERAL (
                SELECT e FROM jsonb_array_elements(CASE WHEN part = '*' AND jsonb_typeof(item) = 'array' THEN item END) e
                UNION ALL SELECT item -> part WHERE part <> '*' AND jsonb_typeof(item) = 'object' AND item ? part
            ) AS inside (inner_item);
        END LOOP;
        SELECT jsonb_agg(item) INTO items FROM jsonb_array_elements(items) item WHERE item NOT IN ('null', '""');
        IF items IS NULL THEN
            RETURN NULL;
        END IF;
    ELSE
        value := record #> path;
        plain := fieldmirror.scalar_text(value);
        IF kind = 'reference' AND jsonb_typeof(value) = 'object' THEN
            plain := fieldmirror.scalar_text(value -> 'id');
        END IF;
        IF kind = 'text[]' AND jsonb_typeof(value) = 'array' THEN
            items := value;
        ELSIF plain IS NULL OR plain = '' OR kind = 'text[]' THEN
            RETURN NULL;
        END IF;
    END IF;
    IF kind = 'text[]' THEN
        IF EXISTS (SELECT FROM jsonb_array_elements(items) item WHERE fieldmirror.scalar_text(item) IS NULL) THEN
            RETURN NULL;
        END IF;
        RETURN ARRAY(SELECT fieldmirror.scalar_text(item) FROM jsonb_array_elements(items) item)::text;
    END IF;
    IF kind IN ('text', 'reference') THEN
        RETURN plain;
    END IF;
    plain := btrim(plain, E' \t\n\r');
    RETURN CASE kind
        WHEN 'timestamptz' THEN mirror.as_timestamptz(CASE
            WHEN plain ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} UTC$'
                THEN replace(replace(plain, ' UTC', 'Z'), ' ', 'T')
            WHEN plain ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?$' THEN plain || 'Z'
            -- Epoch milliseconds, to the whole one.
            ELSE coalesce(trunc(mirror.as_numeric(plain))::text, plain) END)::text
        WHEN 'numeric' THEN mirror.as_numeric(plain)::text
        WHEN 'bigint' THEN CASE WHEN plain ~ '^[+-]?[0-9]{1,18}$' THEN plain::bigint::text END
        WHEN 'boolean' THEN mirror.as_boolean(plain)::text
        WHEN 'cents' THEN CASE WHEN length(plain) <= 400 AND plain ~ '^-?[0-9]+$' THEN round(plain::numeric / 100, 2)::text END
    END;
END
$$;

-- Fills a column from `raw`, in every row: for the migration that adds the column, so that no record has to be asked for
-- again. `kind` is the column's type, or `cents` or `reference`: see ColumnType in src/domain/spec.rs.
CREATE PROCEDURE fieldmirror.fill_column(target regclass, column_name text, kind text, pointer text)
LANGUAGE plpgsql AS $$
DECLARE
    type text := CASE kind WHEN 'cents' THEN 'numeric' WHEN 'reference' THEN 'text' ELSE kind END;
BEGIN
    IF kind NOT IN ('text', 'timestamptz', 'numeric', 'bigint', 'boolean', 'text[]', 'cents', 'reference') THEN
        RAISE EXCEPTION 'no kind of column: %', kind;
    END IF;
    IF pointer !~ '^(/[^/~]+)+$' THEN
        RAISE EXCEPTION 'not a JSON pointer without escapes: %', pointer;
    END IF;
    EXECUTE format(
        'UPDATE %1$s SET %2$I = fieldmirror.column_text(raw, %3$L, %4$L)::%5$s
         WHERE fieldmirror.column_text(raw, %3$L, %4$L) IS NOT NULL',
        target, column_name, kind, pointer, type);
END
$$;
