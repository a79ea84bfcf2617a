#!/usr/bin/env bash
# Tests of backups without machines: the operations of setup/backup.sh and setup/restore.sh on folders and databases, on
# a PostgreSQL for tests.
#
#   tests/vms/backups.sh HOME PORT    the server's folder (setup/lib/local/postgres.sh) and port
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/tests/vms/test_server.sh"

server=$(readlink -f "$1")
set_setting POSTGRES_PORT "$2"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
database=backups_$$
owner=keeper_$$
set_setting POSTGRES_PASSWORD "$(random_secret)"

main() {
    old_backups_go
    sql_role "$owner" "${SETTINGS[POSTGRES_PASSWORD]}" | administrator_psql
    orders_come_back
    dead_letters_come_back
    echo "DROP ROLE $owner;" | administrator_psql
    echo "$passed passed, ${#failures[@]} failed"
    ((${#failures[@]} == 0))
}

old_backups_go() {
    local folder number
    for folder in "$scratch/backups" "$scratch/two words" "$scratch/a [odd] *"$'\n'"'one'"; do
        install -d "$folder"
        for number in {10..25}; do
            touch "$folder/$database-202611${number}T030000Z.dump"
        done
        touch "$folder/$database-notes.dump" "$folder/another-20261101T030000Z.dump"
        remove_old_backups "$folder"
        is "of 16 backups the 14 newest stay in ${folder@Q}" "$(names {12..25})" ls "$folder"
        remove_old_backups "$folder"
        is 'and stay' "$(names {12..25})" ls "$folder"
    done
}

# names DAY…: prints the names of the backups of these days.
names() {
    {
        printf "$database-202611%dT030000Z.dump\n" "$@"
        printf '%s\n' "$database-notes.dump" another-20261101T030000Z.dump
    } | sort
}

# orders_come_back: the backup lacks a column. "late" has an id from before the backup and was committed after it. The id
# of "other" was assigned twice, as after a restore without the newer orders. The orders of "hand" have no message id.
orders_come_back() {
    local former=${database}_former orders='message_id, user_id, number_of_items, total_amount'
    new_database
    in_database "INSERT INTO orders (id, $orders) OVERRIDING SYSTEM VALUE VALUES
        (1, 'first', 'u', 1, 1), (3, 'third', 'u', 1, 1), (4, NULL, 'hand', 1, 1), (5, 'fifth', 'u', 1, 1)"
    is 'a backup that the disk does not take fails' 1 exit_of dump_database /dev/full
    dump_database "$scratch/dump"
    in_database "INSERT INTO orders (id, $orders) OVERRIDING SYSTEM VALUE VALUES
        (2, 'late', 'u', 1, 1), (6, NULL, 'hand', 1, 1), (7, 'newest', 'u', 1, 1);
        UPDATE orders SET message_id = 'other' WHERE message_id = 'third';
        UPDATE orders SET sent = 'as it was' WHERE message_id = 'late';
        ALTER TABLE orders ADD COLUMN younger text DEFAULT 'than the backup';
        DELETE FROM orders WHERE message_id = 'first'"

    fill_new_database "${database}_restored" "$scratch/dump"
    exchange "$former"
    take_over_orders "$former"

    is 'each order is there once, and no number changes hands' \
        '1 first, 2 late, 3 third, 4 hand, 5 fifth, 6 hand, 7 newest, 8 other' in_database \
        "SELECT string_agg(id || ' ' || coalesce(message_id, user_id), ', ' ORDER BY id) FROM orders"
    is 'an order has all that both tables have room for' 'as it was' in_database \
        "SELECT sent FROM orders WHERE message_id = 'late'"
    take_over_orders "$former"
    is 'a second time brings nothing' 8 in_database 'SELECT count(*) FROM orders'
    is 'the next order has the next number' 9 in_database \
        "INSERT INTO orders ($orders) VALUES ('next', 'u', 1, 1) RETURNING id"
    drop_database "$former"
    drop_database "$database"
}

# dead_letters_come_back: "twice" became a dead letter twice, with different contents, and "new" after the restore, with
# an id that was assigned before.
dead_letters_come_back() {
    local former=${database}_former new
    new='INSERT INTO dead_letters
             (message_id, reason, detail, exchange, routing_key, properties, body, body_bytes) VALUES'
    new_database
    in_database "$new ('early', 'body', '', '', 'q', '{}', 'a', 1), ('twice', 'body', '', '', 'q', '{}', 'a', 1),
                      (NULL, 'body', '', '', 'q', '{}', 'a', 1)"
    dump_database "$scratch/dump"
    in_database "$new ('twice', 'body', '', '', 'q', '{}', 'b', 1), (NULL, 'body', '', '', 'q', '{}', 'a', 1)"

    fill_new_database "${database}_restored" "$scratch/dump"
    exchange "$former"
    in_database "$new ('new', 'body', '', '', 'q', '{}', 'a', 1)"
    take_over_dead_letters "$former"
    take_over_dead_letters "$former"

    is 'each dead letter is there once, and no number changes hands' \
        '1 early a, 2 twice a, 3  a, 4 new a, 5  a, 6 twice b' in_database \
        "SELECT string_agg(id || ' ' || coalesce(message_id, '') || ' ' || encode(body, 'escape'), ', ' ORDER BY id)
           FROM dead_letters"
    is 'a database without dead letters is told from one with them' '0 1' echo \
        "$(exit_of has_table "$database" dead_letters)" "$(exit_of has_table postgres dead_letters)"
    drop_database "$former"
    drop_database "$database"
}

# new_database: makes a database with the empty tables of billing.
new_database() {
    echo "CREATE DATABASE $database OWNER $owner TEMPLATE template0" | administrator_psql
    cat <(echo 'SET search_path = public;') "$repo"/billing/migrations/*.sql | owner_psql --dbname="$database"
}

in_database() {
    owner_psql --dbname="$database" --tuples-only --no-align --command="SET search_path = public" --command="$1"
}

main
