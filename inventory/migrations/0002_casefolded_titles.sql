-- Folds the case of a text for comparison. Lower case does not unite all letters that Unicode folds to one:
-- ς and σ, ſ and s, ϐ and β. The list has the letters whose simple case folding (CaseFolding.txt, status C and
-- S) is another letter than their lower case; for the others lower() in PostgreSQL's locale suffices. A letter
-- that folds to several (ß to ss) is not folded.
CREATE FUNCTION casefolded(text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
        SELECT translate(
            lower($1),
            U&'\00B5\017F\0345\03C2\03D0\03D1\03D5\03D6\03F0\03F1\03F5\1C80\1C81\1C82\1C83\1C84\1C85\1C86\1C87\1C88\1E9B\1FBE\1FD3\1FE3\FB05',
            U&'\03BCs\03B9\03C3\03B2\03B8\03C6\03C0\03BA\03C1\03B5\0432\0434\043E\0441\0442\0442\044A\0463\A64B\1E61\03B9\0390\03B0\FB06'
        )
    $$;

-- With this index PostgreSQL finds a part of a title in any case without a scan of the table.
CREATE INDEX movies_casefolded_title_trigrams
    ON movies USING gin (casefolded(title) gin_trgm_ops);
DROP INDEX movies_title_trigrams;
