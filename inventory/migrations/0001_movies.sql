-- What the program checks, the table checks again: another program may write here one day.
CREATE TABLE movies (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title       text NOT NULL
                CHECK (char_length(title) <= 255 AND btrim(title, E' \t\n\r\f\v') <> ''),
    description text NOT NULL
                CHECK (btrim(description, E' \t\n\r\f\v') <> '')
);

-- Finds any part of a title in any case (ILIKE '%part%') without reading the whole table.
CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;
CREATE INDEX movies_title_trigrams ON movies USING gin (title gin_trgm_ops);
