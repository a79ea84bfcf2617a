# shellcheck shell=bash
# PM2 as a service of the machine: pm2-root.service, which systemd starts and restarts. It runs as root, since only root
# can run each program as a user of its own; its command is `sudo pm2`.

supervisor_unit=/etc/systemd/system/pm2-root.service

provide_supervisor() {
    local reload=false
    install -d -m 700 "${state:?}/pm2"
    install -d -m 750 -g adm "${logs:?}"
    ln -sfnT "$logs" "$state/logs"
    use_node
    pm2_script | write_if_new /usr/local/bin/pm2 755 || true
    if unit_text | write_if_new "$supervisor_unit" 644; then
        reload=true
    fi
    ! $reload || systemctl daemon-reload
    systemctl is-enabled --quiet pm2-root || systemctl enable --quiet pm2-root
    provide_rotation
    if supervisor_is_current; then
        systemctl start pm2-root
    else
        systemctl restart pm2-root
    fi
}

# supervisor_is_current: whether this unit has started the running PM2, in the present version.
supervisor_is_current() {
    local pid
    pid=$(apps_daemon_pid "$state") && has_mark "$pid" "UNIT_DIGEST=$(unit_digest)"
}

unit_digest() {
    {
        unit_body ''
        cat "${tools:?}/pm2/version"
    } | sha256sum | cut -c 1-32
}

unit_text() {
    unit_body "$(unit_digest)"
}

# unit_body DIGEST: prints the unit. systemd starts the daemon, since a daemon of a login session would end with the
# session. "pm2 kill" ends the programs one after the other, each after its accepted work. The digest in the daemon's
# environment identifies the unit and the version with which it was started.
unit_body() {
    cat <<UNIT
[Unit]
Description=PM2, the supervisor of crud-master's programs
After=network.target

[Service]
Type=forking
PIDFile=$state/pm2/pm2.pid
Environment="PM2_HOME=$state/pm2"
Environment=HOME=/root
Environment="PATH=$PATH"
Environment=NODE_DISABLE_COMPILE_CACHE=1
Environment=PM2_DISCRETE_MODE=true
Environment=PM2_DISABLE_VERSION_CHECK=true
Environment=UNIT_DIGEST=$1
ExecStart=$(command -v node) $(pm2_program) resurrect
ExecStop=$(command -v node) $(pm2_program) kill
Restart=always
RestartSec=1
TimeoutStopSec=60
LimitNOFILE=65536
UMask=0027

[Install]
WantedBy=multi-user.target
UNIT
}

pm2_program() {
    echo "$tools/pm2/node_modules/pm2/bin/pm2"
}

# pm2_script: prints the command pm2. PM2 stores the whole environment of its caller, and stores its list of programs only
# on a command. Therefore the script clears the environment and stores the list after every change, so that after a
# restart of the machine a stopped program stays stopped and a started one runs.
pm2_script() {
    cat <<SCRIPT
#!/usr/bin/env bash
# PM2 as it runs on this machine, as a service. Made by setup/lib/machines/supervisor.sh of crud-master.
set -u

pm2() {
    env -i "PATH=$PATH" HOME=/root "TERM=\${TERM:-dumb}" LANG=C.UTF-8 PM2_HOME=$state/pm2 \\
        NODE_DISABLE_COMPILE_CACHE=1 PM2_DISCRETE_MODE=true PM2_DISABLE_VERSION_CHECK=true \\
        $(command -v node) $(pm2_program) "\$@"
}

if [[ \$EUID != 0 ]]; then
    echo "The programs are supervised by root's PM2: sudo pm2 \$*" >&2
    exit 1
fi
case \${1:-} in
    kill) exec systemctl stop pm2-root ;;
    update) exec systemctl restart pm2-root ;;
    startup | unstartup)
        echo 'PM2 starts with the machine as pm2-root.service: systemctl status pm2-root' >&2
        exit 1
        ;;
esac
# systemd starts the daemon, since it would otherwise end with this session.
systemctl is-active --quiet pm2-root || systemctl start pm2-root || exit
pm2 "\$@"
status=\$?
case \${1:-} in
    start | stop | restart | reload | delete | del | scale) pm2 save --force >/dev/null ;;
esac
exit \$status
SCRIPT
}

# provide_rotation: makes logrotate rotate the logs. It is run every hour, since a log may become large in less than a
# day.
provide_rotation() {
    write_if_new /etc/logrotate.d/crud-master 644 <<ROTATION || true
# Made by setup/lib/machines/supervisor.sh of crud-master.
$logs/*.log $state/pm2/pm2.log {
    daily
    maxsize 64M
    rotate 14
    compress
    delaycompress
    missingok
    notifempty
    create 0640 root adm
    su root root
    sharedscripts
    postrotate
        /usr/local/bin/pm2 reloadLogs >/dev/null
    endscript
}
ROTATION
    systemctl is-enabled --quiet logrotate.timer || systemctl enable --quiet logrotate.timer
    if rotation_times | write_unit_part logrotate.timer; then
        systemctl restart logrotate.timer
    else
        systemctl start logrotate.timer
    fi
}

rotation_times() {
    cat <<'UNIT'
[Timer]
OnCalendar=
OnCalendar=hourly
UNIT
}

# start_apps: starts the programs that do not run, or run from an older file, list or settings.
start_apps() {
    ln -sfnT "${home:?}/bin" "$state/programs"
    apps_start "$state"
    run_pm2 "$state" save --force
}
