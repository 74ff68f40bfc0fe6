DROP PROCEDURE fieldmirror.fill_column(regclass, text, text, text);
DROP FUNCTION fieldmirror.column_text(jsonb, text, text);
DROP FUNCTION fieldmirror.scalar_text(jsonb);
DROP TABLE fieldmirror.stream_fields;
DROP TABLE mirror.drift;
DROP TABLE mirror.changes;
