-- The table repeats the checks of the program, since another program may write to it one day.
CREATE TABLE movies (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title       text NOT NULL
                CHECK (char_length(title) <= 255 AND btrim(title, E' \t\n\r\f\v') <> ''),
    description text NOT NULL
                CHECK (btrim(description, E' \t\n\r\f\v') <> '')
);

-- With this index PostgreSQL finds a part of a title in any case (ILIKE '%part%') without a scan of the table.
CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;
CREATE INDEX movies_title_trigrams ON movies USING gin (title gin_trgm_ops);
