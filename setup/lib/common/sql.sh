# shellcheck shell=bash
# What is said to PostgreSQL as its superuser, whichever server it is: roles, databases and their rights.

# as_postgres COMMAND…: PostgreSQL refuses to run as root; root runs it as the user postgres.
as_postgres() {
    if ((EUID == 0)); then
        as_user postgres "$@"
    else
        bare "$@"
    fi
}

# with_environment_as_postgres COMMAND…: with the caller's variables, for a password that is to be on no
# command line.
with_environment_as_postgres() {
    if ((EUID == 0)); then
        as_user --with-environment postgres "$@"
    else
        "$@"
    fi
}

# What every session of a superuser begins with, and of the owner. A database may belong to the role of a service,
# which may then make tables, functions and operators with the names of PostgreSQL's own, and give settings to
# all sessions there or of its own: these win over its. The folders of the client's own settings are not asked.
# shellcheck disable=SC2034
superuser_session=(
    PGOPTIONS="-c search_path=pg_catalog,pg_temp -c role=none -c standard_conforming_strings=on
        -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed
        -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0
        -c local_preload_libraries= -c default_tablespace= -c temp_tablespaces= -c default_table_access_method=heap
        -c row_security=on -c xmloption=content"
    PGCLIENTENCODING=UTF8 PGSYSCONFDIR=/nonexistent HOME=/nonexistent
)

# What tells a role of ours from those of others; an ordinary role cannot write it.
our_role='Made by setup/ of crud-master.'

# sql_role NAME PASSWORD: prints the SQL that makes the role and sets its password. What it has set for its own
# sessions goes, and with it the sessions that have begun so.
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

# sql_database NAME OWNER: prints the SQL that makes the database, for its owner alone. Where it has
# another owner, as after a change of POSTGRES_USER, it goes over to the new one with what the former
# owns in it. REASSIGN OWNED takes along other databases of the former one, which get it back. Whatever its owner
# has set that keeps people out, or sessions from writing, goes first, from outside.
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

# sql_may_read DATABASE OWNER READER: prints the SQL that lets a role read the owner's tables in the schema
# of the programs, those that the owner makes later included, and do nothing else. Before PostgreSQL 15
# everybody may make tables in "public".
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

# sql_nobody_else: prints the SQL that closes the databases every cluster comes with.
sql_nobody_else() {
    echo 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;'
}
