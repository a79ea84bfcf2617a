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

install_browser_tools() {
    install_node_packages browser 'Install playwright-core and axe-core' \
        "${repo:?}/tests/browser" "$browser_node_version"
}
