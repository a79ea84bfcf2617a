//! What all connections may hold in memory together, beyond a small allowance for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a connection may hold without asking; most requests are far below.
const ALLOWANCE_BYTES: usize = 16 * 1024;

/// The memory of one listener.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Memory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            used: Arc::default(),
            bytes_max,
        }
    }

    /// A share of it, with nothing in it but the allowance.
    pub(crate) fn share(&self) -> Share {
        Share {
            memory: self.clone(),
            bytes: 0,
        }
    }
}

/// What one request or one answer holds; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Memory,
    bytes: usize,
}

impl Share {
    /// Grows to so many bytes in all; false where the memory does not reach.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        self.grow_within(bytes, self.memory.bytes_max)
    }

    /// Grows to so many bytes in all, within the half that answers may take, so that requests always
    /// find the other; false where that half does not reach.
    pub(crate) fn grow_within_half(&mut self, bytes: usize) -> bool {
        self.grow_within(bytes, self.memory.bytes_max / 2)
    }

    /// Gives back what is more than so many bytes in all.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let less = self
            .bytes
            .saturating_sub(bytes.saturating_sub(ALLOWANCE_BYTES));
        if less > 0 {
            self.memory.used.fetch_sub(less, Ordering::Relaxed);
            self.bytes -= less;
        }
    }

    fn grow_within(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let more = bytes
            .saturating_sub(ALLOWANCE_BYTES)
            .saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let used = self.memory.used.fetch_add(more, Ordering::Relaxed);
        if used + more > bytes_max {
            self.memory.used.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let memory = Memory::new(100_000);
        let (mut first, mut second) = (memory.share(), memory.share());

        assert!(first.grow(ALLOWANCE_BYTES + 90_000));
        assert!(second.grow(ALLOWANCE_BYTES));
        assert!(!second.grow(ALLOWANCE_BYTES + 10_001));
        assert!(!second.grow_within_half(ALLOWANCE_BYTES + 1));
        first.shrink_to(ALLOWANCE_BYTES);

        assert!(second.grow(ALLOWANCE_BYTES + 100_000));
        assert!(second.grow(ALLOWANCE_BYTES + 100_000), "nothing more");
    }
}
