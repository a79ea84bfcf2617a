# shellcheck shell=bash
# A browser and the packages of tests/browser: playwright-core, which contains no browser, and axe-core.
# tests/browser/package-lock.json names both with their hashes.

# The version of Node that playwright-core needs; PM2 needs an older one.
browser_node_version=20

# find_chromium: prints the path of the first browser that runs. On Ubuntu chromium-browser may be a stub that needs a
# snap.
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

# lacking_chromium: prints the package, if the distribution has one.
lacking_chromium() {
    find_chromium >/dev/null || [[ $(. /etc/os-release && echo "$ID") != debian ]] || echo chromium
}

install_browser_tools() {
    install_node_packages browser 'Install playwright-core and axe-core' \
        "${repo:?}/tests/browser" "$browser_node_version"
}
