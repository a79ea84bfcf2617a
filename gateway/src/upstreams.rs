//! The services to which requests are forwarded, those of one kind in turn. A service that fails is marked down
//! until its `/ready` answers 200, so that its outage delays one request and not every one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::http::OperationsKey;

/// All services of one kind; all workers share this value.
pub(crate) struct Upstreams {
    service: &'static str,
    /// The key that the probes send, where one is set; with it `/ready` shows the dependencies.
    operations_key: Option<OperationsKey>,
    all: Vec<Upstream>,
    next: AtomicUsize,
}

struct Upstream {
    address: SocketAddr,
    down: AtomicBool,
}

impl Upstreams {
    /// There must be at least one address. `service` is the name in the answer when none can be reached.
    pub(crate) fn new(
        service: &'static str,
        addresses: &[SocketAddr],
        operations_key: Option<OperationsKey>,
    ) -> Arc<Self> {
        let upstream = |address| Upstream {
            address,
            down: AtomicBool::new(false),
        };
        Arc::new(Self {
            service,
            operations_key,
            all: addresses.iter().copied().map(upstream).collect(),
            next: AtomicUsize::new(0),
        })
    }

    /// The name of the services in an answer.
    pub(crate) fn service(&self) -> &'static str {
        self.service
    }

    /// The key that the probes send; with it `/ready` shows the dependencies.
    pub(crate) fn operations_key(&self) -> Option<&OperationsKey> {
        self.operations_key.as_ref()
    }

    /// The number of services.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The next service that is up. If all are marked down, the next of all, since one may work again before a
    /// health check shows it.
    pub(crate) fn choose(&self) -> SocketAddr {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = || (0..self.len()).map(|step| &self.all[(turn + step) % self.len()]);
        let working = in_turn().find(|upstream| !upstream.down.load(Ordering::Relaxed));
        working
            .unwrap_or_else(|| &self.all[turn % self.len()])
            .address
    }

    /// A service that is up, other than the one that has just failed.
    pub(crate) fn choose_other(&self, failed: SocketAddr) -> Option<SocketAddr> {
        let others = self
            .all
            .iter()
            .filter(|upstream| upstream.address != failed);
        let mut working = others.filter(|upstream| !upstream.down.load(Ordering::Relaxed));
        working.next().map(|upstream| upstream.address)
    }

    /// Marks a service down. The only service of its kind is never marked: there is no other to choose.
    pub(crate) fn mark_down(&self, failed: SocketAddr) {
        if self.len() < 2 {
            return;
        }
        for upstream in self
            .all
            .iter()
            .filter(|upstream| upstream.address == failed)
        {
            if !upstream.down.swap(true, Ordering::Relaxed) {
                let address = failed.to_string();
                log::warn!(service = self.service, address = address.as_str(); "marked down");
            }
        }
    }

    /// Marks up the services that were marked down and for which `is_back` returns true.
    pub(crate) fn mark_up(&self, is_back: impl Fn(SocketAddr) -> bool) {
        for upstream in &self.all {
            if upstream.down.load(Ordering::Relaxed) && is_back(upstream.address) {
                upstream.down.store(false, Ordering::Relaxed);
                let address = upstream.address.to_string();
                log::info!(service = self.service, address = address.as_str(); "marked up");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn ports(upstreams: &Upstreams, choices: usize) -> Vec<u16> {
        (0..choices).map(|_| upstreams.choose().port()).collect()
    }

    #[test]
    fn inventories_are_used_in_turn_and_one_that_failed_is_down() {
        let upstreams =
            Upstreams::new("the inventory", &[address(1), address(2), address(3)], None);
        assert_eq!(ports(&upstreams, 4), [1, 2, 3, 1]);

        upstreams.mark_down(address(2));

        assert_eq!(ports(&upstreams, 3), [3, 3, 1]);
        assert_eq!(upstreams.choose_other(address(1)), Some(address(3)));
    }

    #[test]
    fn where_all_have_failed_all_are_tried() {
        let upstreams = Upstreams::new("the inventory", &[address(1), address(2)], None);

        upstreams.mark_down(address(1));
        upstreams.mark_down(address(2));

        assert_eq!(ports(&upstreams, 4), [1, 2, 1, 2]);
        assert_eq!(upstreams.choose_other(address(1)), None);
    }

    #[test]
    fn the_only_one_is_never_down() {
        let upstreams = Upstreams::new("the inventory", &[address(1)], None);

        upstreams.mark_down(address(1));

        assert!(!upstreams.all[0].down.load(Ordering::Relaxed));
    }
}
