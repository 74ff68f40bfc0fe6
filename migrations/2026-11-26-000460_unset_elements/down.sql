CREATE OR REPLACE FUNCTION fieldmirror.column_text(record jsonb, kind text, pointer text) RETURNS text
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
