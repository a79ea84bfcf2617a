//! Files that are read again when somebody has changed them: certificates, keys of callers.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Files, and what they contained at the last look.
#[derive(Clone)]
pub struct Watched {
    files: Vec<PathBuf>,
    seen: Vec<Option<u64>>,
}

impl Watched {
    /// Looks at the files for the first time. Whoever reads them afterwards misses no change.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        let seen = contents(&files);
        Self { files, seen }
    }

    /// Looks at them every second from now on, and calls `changed` after each look that found
    /// something else. The thread ends with the process.
    pub fn watch(mut self, mut changed: impl FnMut() + Send + 'static) -> io::Result<()> {
        let look = move || {
            loop {
                thread::sleep(LOOK_EVERY);
                let contents = contents(&self.files);
                if contents != self.seen {
                    self.seen = contents;
                    changed();
                }
            }
        };
        thread::Builder::new()
            .name("watched-files".to_owned())
            .stack_size(128 * 1024)
            .spawn(look)?;
        Ok(())
    }
}

/// By content and not by time: clocks are set, and a copy may keep its times. None is a file that
/// cannot be read.
fn contents(files: &[PathBuf]) -> Vec<Option<u64>> {
    let content = |file: &PathBuf| {
        let mut hasher = DefaultHasher::new();
        std::fs::read(file).ok()?.hash(&mut hasher);
        Some(hasher.finish())
    };
    files.iter().map(content).collect()
}
