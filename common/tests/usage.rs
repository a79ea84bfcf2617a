//! The `process_*` metrics. This test is alone in its process, so that nothing else changes them.

use std::fs::{self, File};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use common::metrics::Metrics;

const MIB: u64 = 1024 * 1024;

/// The value of the metric of this name.
fn metric(name: &str) -> u64 {
    number_after(&Metrics::new().text(), &format!("\n{name} "))
}

/// A value of `/proc/self/status` in bytes.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    number_after(&status, name) * 1024
}

fn number_after(text: &str, name: &str) -> u64 {
    let (_, rest) = text.split_once(name).expect(name);
    let number = rest.split_whitespace().next().expect(name);
    number.parse().expect(name)
}

#[test]
fn process_metrics_are_those_that_the_kernel_counts() {
    let descriptors = metric("process_open_fds");
    let files: Vec<_> = (0..100)
        .map(|_| File::open("/dev/null").expect("a file"))
        .collect();
    assert_eq!(metric("process_open_fds"), descriptors + 100);
    drop(files);

    let threads = metric("process_threads");
    let end = Arc::new(Barrier::new(4));
    let held: Vec<_> = (0..3)
        .map(|_| {
            let end = Arc::clone(&end);
            thread::spawn(move || end.wait())
        })
        .collect();
    assert_eq!(metric("process_threads"), threads + 3);
    end.wait();
    for thread in held {
        thread.join().expect("a thread that only waited");
    }

    let memory = vec![1_u8; 64 << 20];
    let resident = metric("process_resident_memory_bytes");
    assert!(resident.abs_diff(status("VmRSS:")) < 8 * MIB, "{resident}");
    assert!(resident > 64 * MIB, "{resident}");
    let reserved = metric("process_virtual_memory_bytes");
    assert!(reserved.abs_diff(status("VmSize:")) < 8 * MIB, "{reserved}");
    drop(memory);

    let limits = fs::read_to_string("/proc/self/limits").expect("/proc/self/limits");
    let descriptors_max = number_after(&limits, "Max open files");
    assert_eq!(metric("process_max_fds"), descriptors_max);

    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let started = metric("process_start_time_seconds");
    assert!(
        (now - 600..=now + 1).contains(&started),
        "{started} at {now}"
    );

    while metric("process_cpu_seconds_total") == 0 {}
    assert_eq!(metric("process_cpu_seconds_total"), 1);
}
