//! Limits how many bytes of deliveries are in memory. RabbitMQ's prefetch counts messages and ignores AMQP's limit in
//! bytes, one message may have 16 MiB or more, and amiquip buffers all that arrive. This limit therefore applies
//! before amiquip: while too many bytes are unreleased, no further message is read from the socket, and TCP makes
//! the broker wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::{Ready, SetReadiness};

use super::frame::{CONTENT_BODY, CONTENT_HEADER, FRAME_HEAD_BYTES, METHOD, big_endian};

/// How many bytes unreleased deliveries may have together. While they have fewer, one more delivery of any size is
/// read; otherwise a larger message would never arrive.
const UNRELEASED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How many times its encoded size a parsed table of many small headers takes.
const READ_HEADER_FACTOR: usize = 32;

/// Class and method of `basic.deliver`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];

/// The unreleased deliveries. The owner of the connection releases them, and the [`FrameFilter`] adds further ones.
pub(super) struct InboundLimit {
    state: Mutex<DeliveryState>,
    /// Wakes the thread that reads the socket.
    wake: SetReadiness,
}

#[derive(Default)]
struct DeliveryState {
    /// The bytes of each delivery, by its tag.
    unreleased: HashMap<u64, usize>,
    weight: usize,
    /// Whether a delivery waits in the socket until there is room.
    waiting: bool,
    /// Whether the consumer takes no more messages.
    ended: bool,
}

impl InboundLimit {
    pub(super) fn new(wake: SetReadiness) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            wake,
        })
    }

    /// Counts these deliveries as freed.
    pub(super) fn release(&self, tags: impl IntoIterator<Item = u64>) {
        let mut state = self.state();
        for tag in tags {
            state.weight -= state.unreleased.remove(&tag).unwrap_or(0);
        }
        self.wake(state);
    }

    /// Counts `bytes` of this delivery as freed.
    pub(super) fn reduce(&self, tag: u64, bytes: usize) {
        let mut state = self.state();
        let DeliveryState {
            unreleased, weight, ..
        } = &mut *state;
        if let Some(own) = unreleased.get_mut(&tag) {
            let less = bytes.min(*own);
            *own -= less;
            *weight -= less;
        }
        self.wake(state);
    }

    /// Whether a message that arrives now has to wait.
    pub(super) fn is_full(&self) -> bool {
        self.state().weight >= UNRELEASED_BYTES_MAX
    }

    /// Drops all further messages, so that none delays the broker's answers behind it.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        self.wake(state);
    }

    fn wake(&self, mut state: MutexGuard<'_, DeliveryState>) {
        if std::mem::take(&mut state.waiting) {
            // This fails only if the pipe of the reader's poll fails.
            let _ = self.wake.set_readiness(Ready::readable());
        }
    }

    fn state(&self) -> MutexGuard<'_, DeliveryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameAction {
    Pass,
    /// The frame and those after it wait until there is room.
    Wait,
    Drop,
}

/// Decides which frames amiquip reads, and when. Frames wait only between messages: a message that has begun to
/// arrive is read to its end.
pub(super) struct FrameFilter {
    inbound_limit: Arc<InboundLimit>,
    /// The channel and the tag of the delivery that is arriving.
    arriving: Option<([u8; 2], u64)>,
    /// The channel of the delivery that is dropped.
    dropping: Option<[u8; 2]>,
}

impl FrameFilter {
    pub(super) fn new(inbound_limit: Arc<InboundLimit>) -> Self {
        Self {
            inbound_limit,
            arriving: None,
            dropping: None,
        }
    }

    /// Decides about a complete frame. It is called again for a frame that has to wait.
    pub(super) fn decide(&mut self, frame: &[u8]) -> FrameAction {
        let channel = [frame[1], frame[2]];
        let payload = &frame[FRAME_HEAD_BYTES..];
        match frame[0] {
            METHOD => {
                let action = match delivery_tag(payload) {
                    Some(tag) => self.decide_delivery(channel, tag),
                    None => FrameAction::Pass,
                };
                if action == FrameAction::Pass && self.dropping == Some(channel) {
                    self.dropping = None;
                }
                action
            }
            CONTENT_HEADER | CONTENT_BODY if self.dropping == Some(channel) => FrameAction::Drop,
            CONTENT_HEADER => {
                self.weigh(channel, payload);
                FrameAction::Pass
            }
            _ => FrameAction::Pass,
        }
    }

    fn decide_delivery(&mut self, channel: [u8; 2], tag: u64) -> FrameAction {
        let mut state = self.inbound_limit.state();
        if state.ended {
            self.dropping = Some(channel);
            return FrameAction::Drop;
        }
        if state.weight >= UNRELEASED_BYTES_MAX {
            state.waiting = true;
            return FrameAction::Wait;
        }
        self.arriving = Some((channel, tag));
        FrameAction::Pass
    }

    fn weigh(&mut self, channel: [u8; 2], payload: &[u8]) {
        let Some((_, tag)) = self.arriving.take_if(|(of, _)| *of == channel) else {
            return;
        };
        let body = payload.get(4..12).map_or(0, big_endian);
        let weight = body.saturating_add(payload.len() * READ_HEADER_FACTOR);
        let mut state = self.inbound_limit.state();
        state.weight = state.weight.saturating_add(weight);
        state.unreleased.insert(tag, weight);
    }
}

/// The tag of a delivery; None for every other method.
fn delivery_tag(payload: &[u8]) -> Option<u64> {
    let rest = payload.strip_prefix(&DELIVER)?;
    let (length, rest) = rest.split_first()?;
    let tag = rest.get(usize::from(*length)..)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*tag))
}

#[cfg(test)]
mod tests {
    use mio::Registration;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short one");
        [&[kind, 0, 1], &length.to_be_bytes()[..], payload, &[0xce]].concat()
    }

    fn deliver(tag: u64) -> Vec<u8> {
        let method = [&DELIVER[..], b"\x03ctg", &tag.to_be_bytes(), b"\0\0\x01q"];
        frame(METHOD, &method.concat())
    }

    fn header(body: usize) -> Vec<u8> {
        let size = (body as u64).to_be_bytes();
        frame(
            CONTENT_HEADER,
            &[&[0, 60, 0, 0], &size[..], &[0, 0]].concat(),
        )
    }

    fn new_filter() -> (FrameFilter, Arc<InboundLimit>, Registration) {
        let (registration, wake) = Registration::new2();
        let inbound_limit = InboundLimit::new(wake);
        (
            FrameFilter::new(Arc::clone(&inbound_limit)),
            inbound_limit,
            registration,
        )
    }

    /// Passes a message of one large body frame to the filter.
    fn arrive(filter: &mut FrameFilter, tag: u64, body: usize) -> FrameAction {
        let action = filter.decide(&deliver(tag));
        if action != FrameAction::Wait {
            assert_eq!(filter.decide(&header(body)), action);
            assert_eq!(filter.decide(&frame(CONTENT_BODY, b"{}")), action);
        }
        action
    }

    #[test]
    fn messages_wait_while_too_much_is_unreleased_and_come_in_when_it_is_released() {
        let (mut filter, inbound_limit, _registration) = new_filter();

        assert_eq!(
            arrive(&mut filter, 1, UNRELEASED_BYTES_MAX / 2),
            FrameAction::Pass
        );
        assert_eq!(
            arrive(&mut filter, 2, UNRELEASED_BYTES_MAX),
            FrameAction::Pass
        );
        assert_eq!(arrive(&mut filter, 3, 0), FrameAction::Wait);
        inbound_limit.release([1]);
        assert_eq!(arrive(&mut filter, 3, 0), FrameAction::Wait);
        inbound_limit.release([2]);
        assert_eq!(arrive(&mut filter, 3, 0), FrameAction::Pass);
    }

    #[test]
    fn a_message_larger_than_the_limit_comes_in_alone() {
        let (mut filter, inbound_limit, _registration) = new_filter();

        assert_eq!(
            arrive(&mut filter, 1, 100 * UNRELEASED_BYTES_MAX),
            FrameAction::Pass
        );
        assert_eq!(arrive(&mut filter, 2, 1), FrameAction::Wait);
        inbound_limit.release([1]);
        assert_eq!(arrive(&mut filter, 2, 1), FrameAction::Pass);
    }

    #[test]
    fn other_frames_never_wait() {
        let (mut filter, _inbound_limit, _registration) = new_filter();
        assert_eq!(
            arrive(&mut filter, 1, 2 * UNRELEASED_BYTES_MAX),
            FrameAction::Pass
        );

        let confirm = frame(METHOD, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        for frame in [confirm, frame(8, b""), header(10)] {
            assert_eq!(filter.decide(&frame), FrameAction::Pass);
        }
        assert_eq!(arrive(&mut filter, 2, 1), FrameAction::Wait);
    }

    #[test]
    fn after_the_end_what_has_begun_to_arrive_arrives_and_the_rest_is_passed_over() {
        let (mut filter, inbound_limit, _registration) = new_filter();
        assert_eq!(filter.decide(&deliver(1)), FrameAction::Pass);

        inbound_limit.end();

        assert_eq!(filter.decide(&header(4)), FrameAction::Pass);
        assert_eq!(
            filter.decide(&frame(CONTENT_BODY, b"{}{}")),
            FrameAction::Pass
        );
        assert_eq!(
            arrive(&mut filter, 2, 2 * UNRELEASED_BYTES_MAX),
            FrameAction::Drop
        );
        assert_eq!(arrive(&mut filter, 3, 1), FrameAction::Drop);
        let close_ok = frame(METHOD, &[0, 20, 0, 41]);
        assert_eq!(filter.decide(&close_ok), FrameAction::Pass);
    }
}
