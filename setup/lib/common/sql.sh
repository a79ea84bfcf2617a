# shellcheck shell=bash
# The SQL that the superuser of PostgreSQL runs, on one machine or several: roles, databases and their rights.

# as_postgres COMMAND…: root runs the command as the user postgres, since PostgreSQL refuses to run as root.
as_postgres() {
    if ((EUID == 0)); then
        as_user postgres "$@"
    else
        bare "$@"
    fi
}

# with_environment_as_postgres COMMAND…: runs the command with the caller's variables, of which one may be a password
# that must not be on a command line.
with_environment_as_postgres() {
    if ((EUID == 0)); then
        as_user --with-environment postgres "$@"
    else
        "$@"
    fi
}

# The settings of every session of the superuser and of the owner. The role of a service may own a database, and can
# then make tables, functions and operators with the names of PostgreSQL's own, and settings for all sessions there or
# for its own; these settings override them. The client does not read its own files of settings.
# shellcheck disable=SC2034
superuser_session=(
    PGOPTIONS="-c search_path=pg_catalog,pg_temp -c role=none -c standard_conforming_strings=on
        -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed
        -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0
        -c local_preload_libraries= -c default_tablespace= -c temp_tablespaces= -c default_table_access_method=heap
        -c row_security=on -c xmloption=content"
    PGCLIENTENCODING=UTF8 PGSYSCONFDIR=/nonexistent HOME=/nonexistent
)

# The comment that marks a role of this project; an ordinary role cannot write it.
our_role='Made by setup/ of crud-master.'

# sql_role NAME PASSWORD: prints the SQL that makes the role and sets its password. The SQL resets the settings that the
# role has made for its own sessions, and ends the sessions that began with them.
sql_role() {
    cat <<SQL
SELECT format('CREATE ROLE %I', $(sql_text "$1"))
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $(sql_text "$1")) \gexec
ALTER ROLE $(sql_name "$1") LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD $(sql_text "$2");
COMMENT ON ROLE $(sql_name "$1") IS '$our_role';
SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_db_role_setting ON setrole = usesysid
 WHERE usename = $(sql_text "$1") \g /dev/null
ALTER ROLE $(sql_name "$1") RESET ALL;
SELECT format('ALTER ROLE %I IN DATABASE %I RESET ALL', $(sql_text "$1"), datname)
  FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase JOIN pg_roles ON pg_roles.oid = setrole
 WHERE rolname = $(sql_text "$1") \gexec
SQL
}

# sql_database NAME OWNER: prints the SQL that makes the database for its owner alone. If the database has another owner,
# as after a change of POSTGRES_USER, the new owner gets it with everything that the former one owns in it. REASSIGN
# OWNED also changes the owner of other databases, which is then restored. Settings of the former owner that refuse
# connections or writes are reset first, from another database.
sql_database() {
    cat <<SQL
SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING ''UTF8'' '
              'LC_COLLATE ''C'' LC_CTYPE ''C.UTF-8''', $(sql_text "$1"), $(sql_text "$2"))
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = $(sql_text "$1")) \gexec
ALTER DATABASE $(sql_name "$1") IS_TEMPLATE false ALLOW_CONNECTIONS true CONNECTION LIMIT -1;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_db_role_setting ON setdatabase = datid
 WHERE datname = $(sql_text "$1") AND setrole = 0 AND pid <> pg_backend_pid() \g /dev/null
ALTER DATABASE $(sql_name "$1") RESET ALL;
REVOKE ALL ON DATABASE $(sql_name "$1") FROM PUBLIC;
\connect $(sql_name "$1")
BEGIN;
SELECT datdba AS former FROM pg_database WHERE datname = current_database() \gset
SELECT coalesce(string_agg(format('ALTER %s %I OWNER TO %s;', kind, name, CAST(:former AS regrole)), ' '), '') AS back
  FROM (SELECT 'DATABASE', datname FROM pg_database WHERE datdba = :former AND datname <> current_database()
         UNION ALL
        SELECT 'TABLESPACE', spcname FROM pg_tablespace WHERE spcowner = :former) AS others (kind, name) \gset
SELECT format('REASSIGN OWNED BY %I TO %I', rolname, $(sql_text "$2")) FROM pg_roles
 WHERE oid = :former AND NOT rolsuper AND rolname <> $(sql_text "$2") \gexec
:back
ALTER DATABASE $(sql_name "$1") OWNER TO $(sql_name "$2");
COMMIT;
SQL
}

# sql_may_read DATABASE OWNER READER: prints the SQL that grants a role the right to read the owner's tables in the
# schema of the programs, including those that the owner makes later, and no other right. Before PostgreSQL 15 every
# role may make tables in "public".
sql_may_read() {
    local owner reader schema
    owner=$(sql_text "$2") reader=$(sql_text "$3") schema=$(sql_text "${SETTINGS[POSTGRES_SCHEMA]:-public}")
    cat <<SQL
GRANT CONNECT ON DATABASE $(sql_name "$1") TO $(sql_name "$3");
\connect $(sql_name "$1")
SELECT format('GRANT CREATE ON SCHEMA %1\$I TO %2\$I; REVOKE CREATE ON SCHEMA %1\$I FROM PUBLIC', nspname, $owner)
  FROM pg_namespace WHERE nspname = $schema
   AND EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = 0 AND privilege_type = 'CREATE') \gexec
SELECT format('GRANT USAGE ON SCHEMA %1\$I TO %3\$I; '
              'ALTER DEFAULT PRIVILEGES FOR ROLE %2\$I IN SCHEMA %1\$I GRANT SELECT ON TABLES TO %3\$I',
              nspname, $owner, $reader)
  FROM pg_namespace WHERE nspname = $schema \gexec
SELECT format('GRANT SELECT ON TABLE %I.%I TO %I', nspname, relname, $reader)
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE nspname = $schema AND relkind IN ('r', 'p') AND pg_get_userbyid(relowner) = $owner \gexec
SQL
}

# sql_nobody_else: prints the SQL that closes the databases that every cluster has from the start.
sql_nobody_else() {
    echo 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;'
}
