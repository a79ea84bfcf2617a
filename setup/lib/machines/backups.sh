# shellcheck shell=bash
# The operations of backup.sh and restore.sh on the databases of a machine. postgres.sh must be read and
# use_machine_database called before.

# How many backups of one database stay in a folder.
backups_kept=14

# dump_database FILE
dump_database() {
    as_owner pg_dump --format=custom --dbname="${database:?}" >"$1" && sync "$1"
}

# remove_old_backups FOLDER: the names sort by time.
remove_old_backups() {
    local backups=("$1/$database"-????????T??????Z.dump)
    ((${#backups[@]} <= backups_kept)) || rm -f -- "${backups[@]::${#backups[@]}-backups_kept}"
}

# exchange FORMER: renames both databases or none. The sessions of other users are ended before.
exchange() {
    administrator_psql <<SQL
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname IN ($(sql_text "$database"), $(sql_text "${database}_restored")) \g /dev/null
BEGIN;
ALTER DATABASE $(sql_name "$database") RENAME TO $(sql_name "$1");
ALTER DATABASE $(sql_name "${database}_restored") RENAME TO $(sql_name "$database");
COMMIT;
SQL
}

# take_over_orders FORMER: copies the orders that the backup lacks, whichever ids they have: an order that was
# committed after the backup may have a lower id than one in the backup.
take_over_orders() {
    take_over orders "$1" created_at 'kept.message_id = former.message_id'
}

# take_over_dead_letters FORMER: copies the dead letters that the backup lacks. Two messages with one message id and
# different contents are two dead letters.
take_over_dead_letters() {
    take_over dead_letters "$1" received_at \
        'kept.message_id = former.message_id AND sha256(kept.body) = sha256(former.body)
         AND kept.body_bytes = former.body_bytes'
}

# take_over TABLE FORMER TIME SAME: copies rows. Two rows for which SAME holds are one row; a row without a message id
# is identified by its id and its time. A row keeps its id, which a user may have noted, unless another row has it by
# now, as after a restore without the newer orders.
take_over() {
    local table columns
    table=$(our_table "$1")
    # The backup may be of an older version with fewer columns.
    columns=$(comm -12 <(columns_of "$2" "$table") <(columns_of "$database" "$table") | paste -sd ,)
    owner_psql --dbname="$2" --command="COPY $table (id, $columns) TO STDOUT" |
        owner_psql --dbname="$database" --single-transaction \
            --command="LOCK TABLE $table IN SHARE ROW EXCLUSIVE MODE" \
            --command="CREATE TEMPORARY TABLE former AS SELECT id, $columns FROM $table WITH NO DATA" \
            --command="COPY former (id, $columns) FROM STDIN" \
            --command="DELETE FROM former USING $table AS kept WHERE $4" \
            --command="DELETE FROM former USING $table AS kept
                        WHERE kept.message_id IS NULL AND former.message_id IS NULL
                          AND kept.id = former.id AND kept.$3 = former.$3" \
            --command="WITH taken AS (
                           INSERT INTO $table (id, $columns) OVERRIDING SYSTEM VALUE
                           SELECT id, $columns FROM former
                            WHERE NOT EXISTS (SELECT FROM $table AS kept WHERE kept.id = former.id)
                           RETURNING id)
                       DELETE FROM former USING taken WHERE former.id = taken.id" \
            --command="SELECT setval(sequence, greatest(max(id), pg_sequence_last_value(sequence)))
                         FROM $table, CAST(pg_get_serial_sequence($(sql_text "$table"), 'id') AS regclass) AS sequence
                        GROUP BY sequence" \
            --command="INSERT INTO $table ($columns) SELECT $columns FROM former ORDER BY id"
}

# columns_of DATABASE TABLE: prints the columns, except the id and those that PostgreSQL generates.
columns_of() {
    owner_psql --dbname="$1" --tuples-only --no-align \
        --command="SELECT quote_ident(attname) FROM pg_attribute
                    WHERE attrelid = to_regclass($(sql_text "$2"))
                      AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attname <> 'id'
                    ORDER BY attname COLLATE \"C\""
}

# has_table DATABASE TABLE
has_table() {
    [[ $(owner_psql --dbname="$1" --tuples-only --no-align \
        --command="SELECT to_regclass($(sql_text "$(our_table "$2")")) IS NOT NULL") == t ]]
}
