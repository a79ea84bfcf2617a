//! Files that a program reads again when they change: certificates and API keys.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// How often the files are checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Files, and their contents at the last check.
#[derive(Clone)]
pub struct Watched {
    files: Vec<PathBuf>,
    seen: Vec<Option<u64>>,
}

impl Watched {
    /// Checks the files for the first time. A caller that reads them afterwards misses no change.
    #[must_use]
    pub fn new(files: Vec<PathBuf>) -> Self {
        let seen = contents(&files);
        Self { files, seen }
    }

    /// Starts a thread that checks the files every second and calls `changed` after each check that found a
    /// difference. The thread ends with the process.
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

/// A hash of the content of each file; None for a file that cannot be read. Modification times are not enough,
/// since clocks are set and a copy may keep its times.
fn contents(files: &[PathBuf]) -> Vec<Option<u64>> {
    let content = |file: &PathBuf| {
        let mut hasher = DefaultHasher::new();
        std::fs::read(file).ok()?.hash(&mut hasher);
        Some(hasher.finish())
    };
    files.iter().map(content).collect()
}
