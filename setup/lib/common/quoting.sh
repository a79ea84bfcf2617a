# shellcheck shell=bash
# Quotes any text for another language.

# sql_text TEXT: prints the text as a string of SQL.
sql_text() {
    printf "'%s'" "${1//\'/\'\'}"
}

# sql_name TEXT: prints the text as a name of SQL.
sql_name() {
    printf '"%s"' "${1//\"/\"\"}"
}

# json_text TEXT: prints the text as a string of JSON.
json_text() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# url_text TEXT: prints the text as a segment of a path.
url_text() {
    local LC_ALL=C i
    for ((i = 0; i < ${#1}; i++)); do
        case ${1:i:1} in
            [A-Za-z0-9._~-]) printf '%s' "${1:i:1}" ;;
            *) printf '%%%02X' "'${1:i:1}" ;;
        esac
    done
}

# regex_text TEXT: prints a regular expression that matches only this text.
regex_text() {
    local i
    for ((i = 0; i < ${#1}; i++)); do
        case ${1:i:1} in
            [A-Za-z0-9_-]) printf '%s' "${1:i:1}" ;;
            [[:punct:]]) printf '\\%s' "${1:i:1}" ;;
            *) printf '%s' "${1:i:1}" ;;
        esac
    done
}
