//! The resources that this process uses, as the kernel counts them, under the names that the clients of
//! Prometheus use.

use std::fmt::Write as _;
use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// The `process_*` metrics, in the Prometheus text format. Metrics that cannot be read are left out.
pub(crate) fn text() -> String {
    let stat = Stat::read();
    let field = |number| stat.as_ref().and_then(|stat| stat.field(number));
    let cpu_ticks = field(14).zip(field(15)).map(|(user, system)| user + system);
    let pages = |pages: u64| pages * page_size() as u64;

    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            cpu_ticks.map(|ticks| ticks / clock_ticks_per_second()),
        ),
        (
            "process_max_fds",
            "gauge",
            "Maximum number of open file descriptors.",
            getrlimit(Resource::Nofile).current,
        ),
        (
            "process_open_fds",
            "gauge",
            "Number of open file descriptors.",
            open_descriptors(),
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            field(24).map(pages),
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            boot_time()
                .zip(field(22))
                .map(|(boot, ticks)| boot + ticks / clock_ticks_per_second()),
        ),
        (
            "process_threads",
            "gauge",
            "Number of OS threads in the process.",
            field(20),
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Virtual memory size in bytes.",
            field(23),
        ),
    ] {
        if let Some(value) = value {
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        }
    }
    text
}

/// The Unix time of the start of the system.
fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    boot.parse().ok()
}

/// The number of open descriptors, without the one that this function opens.
fn open_descriptors() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    open.checked_sub(1)
}

/// The content of `/proc/self/stat`.
struct Stat(String);

impl Stat {
    fn read() -> Option<Self> {
        fs::read_to_string("/proc/self/stat").ok().map(Self)
    }

    /// A field by its number in `proc_pid_stat(5)`, from 3 on: field 2 is the name of the program in parentheses,
    /// and may contain blanks.
    fn field(&self, number: usize) -> Option<u64> {
        let (_, from_the_third) = self.0.rsplit_once(") ")?;
        from_the_third.split(' ').nth(number - 3)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart_whatever_the_program_is_called() {
        let stat = Stat("7 (a) b (c) S 1 7 7 0 -1 4194560 99 0 0 0 300 200 0".to_owned());

        let fields = (stat.field(14), stat.field(15), stat.field(99));

        assert_eq!(fields, (Some(300), Some(200), None));
    }
}
