//! A folder for one test.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::unique_name;

/// A folder that goes with its test.
pub struct Folder {
    path: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Folder {
    /// Makes an empty one.
    ///
    /// # Panics
    /// When there is no place for it.
    #[must_use]
    pub fn create() -> Self {
        Self::create_for(None)
    }

    /// Makes an empty one that belongs to this user and group.
    pub(crate) fn create_for(owner: Option<(u32, u32)>) -> Self {
        let path = std::env::temp_dir().join(unique_name("crud-master"));
        fs::create_dir(&path).expect("a place for a folder");
        let folder = Self { path, owner };
        folder.own(&folder.path, 0o700);
        folder
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file in it, whole or not at all; returns its path.
    ///
    /// # Panics
    /// When there is no place for it.
    #[expect(
        clippy::must_use_candidate,
        reason = "who writes a file again knows its path"
    )]
    pub fn write(&self, name: &str, content: &str, mode: u32) -> String {
        let path = self.path.join(name);
        let new = path.with_extension("new");
        fs::write(&new, content).expect("a place for a file");
        self.own(&new, mode);
        fs::rename(&new, &path).expect("a place for a file");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn own(&self, path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("an own file");
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group)).expect("an own file");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
