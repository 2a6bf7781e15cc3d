//! What migration may do with a NIC, and all it may know of one.
//!
//! ```text
//!   source                                    destination
//!     leave      frames are told                arrive    what is delivered will be first
//!     export     once its rings stand still ►   import
//!     ... told ...                          ►   deliver
//!                                               its rings run: announced, and `activated` says so
//!     gone       frames are told only           deliver
//!                                               settle    what came there is given
//!     stay       nothing is told any more
//! ```
//!
//! An arrival has a number: what is said of one that another has taken the place of is void.
//!
//! A guest that goes on at the source has what was kept for it there, first; [`Told::Resumed`] says so, and
//! the destination forgets what it was delivered ([`NicLifecycle::arrive`] again, or
//! [`NicLifecycle::void`]).

use crossbeam_channel::Sender;

pub use super::bridge::{Captured, Told};
use crate::lifecycle::LifecycleError;

/// A frame that was told, or is delivered, and the port of the source that it came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFrame {
    /// The source's port.
    pub port: u16,
    /// The frame.
    pub frame: Captured,
}

/// What a NIC that leaves tells.
#[derive(Debug)]
pub enum NicEvent {
    /// A port of the device tells of a frame, or that it goes on here.
    Told(u16, Told),
    /// None of the rings runs any more: the state can be exported.
    Stopped,
}

/// Called, once, when the guest of a NIC that arrived runs here, after it was announced. Must not block.
pub type ActivatedHook = Box<dyn FnOnce() + Send>;

/// A NIC, as a move sees it. Calls wait for a worker, and for nothing else.
pub trait NicLifecycle: Send + Sync {
    /// How many ports tell, when it leaves.
    fn ports(&self) -> usize;

    /// The device without its rings, as an envelope, for a destination to check.
    fn shape(&self) -> Result<Vec<u8>, LifecycleError>;

    /// Refuses a device that the guest of the one in `envelope` could not go on with.
    fn check(&self, envelope: &[u8]) -> Result<(), LifecycleError>;

    /// From now on `told` hears of each frame that is kept while the rings stand still, and of what
    /// the rings do. The channel is bounded and never waited for: what it has no room for is lost, and
    /// counted as such. The answer names this leave-taking for [`NicLifecycle::stay`].
    fn leave(&self, told: Sender<NicEvent>) -> Result<u64, LifecycleError>;

    /// The state, with as many of the frames in hand as it has room for. Refused while rings run.
    fn export(&self) -> Result<Vec<u8>, LifecycleError>;

    /// All frames in hand, oldest first, for a destination that must be told again.
    fn in_hand(&self) -> Result<Vec<PortFrame>, LifecycleError>;

    /// The guest runs at the destination. When this returns, every frame that was kept is told.
    fn gone(&self) -> Result<(), LifecycleError>;

    /// The NIC does not leave, or is gone for good: nothing is told any more. Does nothing when the NIC
    /// has taken leave anew since, or is to arrive.
    fn stay(&self, leave: u64);

    /// Whether a front-end is attached.
    fn is_attached(&self) -> bool;

    /// The NIC is to arrive here, by the move of that number. Refused while a guest is on it. Its rings
    /// wait until its state has come. The answer is the arrival's number.
    fn arrive(&self, moving: u128, activated: ActivatedHook) -> Result<u64, LifecycleError>;

    /// The arrival by the move of that number, if its guest has run here: only what the source still
    /// keeps is to come.
    fn has_arrived(&self, moving: u128) -> Option<u64>;

    /// Takes the state over. May be repeated, by another way too: a frame is taken once.
    fn import(&self, arrival: u64, envelope: &[u8]) -> Result<(), LifecycleError>;

    /// Frames of the device of that `origin`, in their order. Those that were delivered before are passed over.
    fn deliver(
        &self,
        arrival: u64,
        origin: u64,
        frames: Vec<PortFrame>,
    ) -> Result<(), LifecycleError>;

    /// No more frames will be delivered that have to be first. A straggler still may be.
    fn settle(&self, arrival: u64);

    /// It does not arrive: forgets what was imported and delivered.
    fn void(&self, arrival: u64);

    /// The source says no more. A machine that is here with its state may go on, as with
    /// [`NicLifecycle::settle`]; without, as with [`NicLifecycle::void`].
    fn dismiss(&self, arrival: u64);
}
