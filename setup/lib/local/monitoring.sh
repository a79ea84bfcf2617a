# shellcheck shell=bash
# Checks docs/monitoring: the rules pass their tests, each alert has a section with its remedy, and the programs export
# every metric that it names.

# check_monitoring SETTINGS: checks against the platform that runs with these settings.
check_monitoring() {
    local monitoring=${repo:?}/docs/monitoring name
    read_settings "$1"
    promtool check config "$monitoring/prometheus.yml"
    check_with_key "$monitoring"
    promtool test rules "$monitoring/alerts.test.yml"
    while read -r name; do
        grep -qx "### $name" "$repo/docs/OPERATIONS.md" ||
            die "the alert $name has no section in docs/OPERATIONS.md: write one"
        grep -q "firing.*$name" "$monitoring/alerts.test.yml" ||
            die "the alert $name has no test in docs/monitoring/alerts.test.yml: write one"
    done < <(sed -n 's/^ *- alert: //p' "$monitoring/alerts.yml")
    every_name_is_exported "$monitoring"
}

# check_with_key FOLDER: checks the configuration for programs that require OPERATIONS_KEY.
check_with_key() {
    local scratch status=0
    scratch=$(mktemp -d)
    cp "$1/alerts.yml" "$scratch"
    touch "$scratch/operations_key"
    sed 's/# authorization:/authorization:/' "$1/prometheus.yml" >"$scratch/prometheus.yml"
    [[ $(grep -c '^ *authorization:' "$scratch/prometheus.yml") == $(grep -c '^ *- job_name:' "$scratch/prometheus.yml") ]] ||
        die 'docs/monitoring/prometheus.yml has a job without the authorization for OPERATIONS_KEY: add it'
    promtool check config "$scratch/prometheus.yml" || status=$?
    rm -r "$scratch"
    return "$status"
}

every_name_is_exported() {
    local used=$1 names missing deadline=$((SECONDS + 60))
    names=$(python3 "$repo/setup/lib/local/metric_names.py" "$used/alerts.yml" "$used/dashboard.json")
    # The metric of refused requests exists only after a refusal.
    curl --silent --output /dev/null --request-target ' ' "$(metrics_url API_GATEWAY_PORT)" || true
    while missing=$(comm -23 - <(exported_names) <<<"$names") && [[ -n $missing ]]; do
        ((SECONDS < deadline)) ||
            die "docs/monitoring has names that no program exports: $(paste -sd ' ' <<<"$missing")"
        sleep 1
    done
    echo "$(wc -l <<<"$names") metrics are used, and every one is exported"
}

# exported_names: prints the metrics of all four programs, and those that Prometheus makes itself.
exported_names() {
    local key
    {
        echo up
        for key in API_GATEWAY_PORT INVENTORY_API_PORT BILLING_API_PORT BILLING_CONSUMER_PORT; do
            curl --silent "$(metrics_url "$key")" | sed -n 's/^\([a-z_]*\).*/\1/p'
        done
    } | LC_ALL=C sort -u
}

metrics_url() {
    echo "http://127.0.0.1:${SETTINGS[$1]}/metrics"
}
