-- When the provider's API first refused the access token itself, although it was fresh; cleared when the API takes one again.
-- A refresh that goes well says nothing about that: it asks another server.
ALTER TABLE fieldmirror.tokens ADD COLUMN refused_at timestamptz;
