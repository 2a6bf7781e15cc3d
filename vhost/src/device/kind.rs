//! What one kind of device is, beside what all of them are.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
};

use super::{Refusal, State, Tracking};
use crate::vring::Vring;

/// The protocol features that any kind may offer: the messages are answered without it. Not STATUS:
/// the crate does not carry its messages, and QEMU would send them.
pub const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

static NO_TRACKING: Tracking = Tracking {
    offered: false,
    own: None,
};

/// A kind of device: what it offers, and who serves its rings.
///
/// # Who calls, and under which lock
///
/// [`super::Device`] calls, in the main on the control thread of the device's session, one message at
/// a time. Every method that is given the state is called with the device's lock held, and `start`,
/// `stop` and `with_ring` are too; so no method may take it, by way of the device, nor wait for
/// a thread that does. The others may be called with the lock or without it.
///
/// # What may block
///
/// `stop` and `with_ring` wait for the ring's worker, and `stop` for local I/O besides: they are how
/// a message is answered after it is done. The others return at once, and none waits for the front-end
/// or for the network.
///
/// # Rings
///
/// A ring at `at`, below `num_queues`, is the kind's from a `start` that succeeded until a `stop` that
/// did. In between `Device` reaches it by `with_ring` only. `Device` never starts a ring that runs,
/// nor calls `with_ring` for one that does not.
pub trait Kind: Send + Sync + Sized + 'static {
    /// What the kind keeps under the device's lock. It outlives the front-end.
    type Own: Send + 'static;

    /// The device's name, for messages.
    fn name(&self) -> &str;

    /// Rings of the device. Does not change.
    fn num_queues(&self) -> u16;

    /// What GET_QUEUE_NUM answers; front-ends count a NIC's queues in pairs.
    fn queue_num(&self) -> u64 {
        self.num_queues().into()
    }

    /// Feature bits offered, vhost-user's own among them. What a front-end sets is checked against
    /// them before anything else sees it.
    fn features(&self) -> u64;

    /// Protocol features offered, but for INFLIGHT_SHMFD, which is `tracking`'s.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES
    }

    /// How requests in flight outlive the process. Not at all, unless the kind says so.
    fn tracking(&self) -> &Tracking {
        &NO_TRACKING
    }

    /// The configuration space as the guest sees it now. What is read past it is zeroes.
    fn config(&self, state: &State<Self>) -> Vec<u8>;

    /// The guest writes `bytes` into the configuration space, at `offset` bytes. Both are the guest's
    /// and checked here.
    fn set_config(
        &self,
        _state: &mut State<Self>,
        _offset: usize,
        _bytes: &[u8],
    ) -> Result<(), Refusal> {
        Err(Refusal::invalid("the configuration space is read only"))
    }

    /// Whether the ring at `at` may start with `base` as its next available entry. One that may not
    /// stays as it is, without an error to the front-end: the kind says in the log why.
    fn may_start(&self, _at: usize, _base: u16) -> bool {
        true
    }

    /// Has `ring` served from now on. `name` is the ring's, for messages. An error is the front-end's
    /// answer; the ring is dropped then and does not run.
    fn start(
        &self,
        state: &State<Self>,
        at: usize,
        name: Arc<str>,
        ring: Vring,
    ) -> Result<(), Refusal>;

    /// Drains the ring at `at` and gives it back: what was popped is ended and shown to the guest, and
    /// nobody touches guest memory for it any more. `None` when there was none. After an error the
    /// ring runs still.
    fn stop(&self, at: usize) -> Result<Option<Vring>, Refusal>;

    /// A ring has stopped; `state` knows it by now.
    fn stopped(&self, _state: &State<Self>) {}

    /// Does `task` to the ring at `at` where it is served, between two polls, and returns when it is
    /// done. The task does not block.
    fn with_ring(
        &self,
        at: usize,
        task: impl FnOnce(&mut Vring) + Send + 'static,
    ) -> Result<(), Refusal>;

    /// The front-end has set `state.features`. Rings may run.
    fn features_changed(&self, _state: &State<Self>) -> Result<(), Refusal> {
        Ok(())
    }

    /// The device was reset: its rings are stopped, and what the driver said is forgotten.
    fn reset(&self, _state: &mut State<Self>) {}

    /// The front-end is gone, after the same. One that comes back may be the same guest's.
    fn disconnected(&self, _state: &mut State<Self>) {}

    /// The front-end wants the kind's state in `file` (SET_DEVICE_STATE_FD), or has it there. The
    /// answer is another file for it, or `None`. Whoever is at the other end may wait for this very
    /// answer: the state is read and written by another thread. A kind that carries state offers
    /// DEVICE_STATE, and overrides this and `check_device_state`.
    fn set_device_state(
        &self,
        _state: &mut State<Self>,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>, Refusal> {
        Err(Refusal::invalid("device state was not negotiated"))
    }

    /// The transfer is over at the front-end's side: whether it is at this one, and went well. May
    /// wait for the thread that carries it.
    fn check_device_state(&self, _state: &mut State<Self>) -> Result<(), Refusal> {
        Err(Refusal::invalid("device state was not negotiated"))
    }
}
