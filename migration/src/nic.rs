//! How a NIC changes hosts while its guest talks.
//!
//! ```text
//!      source                                        destination
//!        | -- NicHello: the device ------------------> |  checked; its rings wait
//!        | <------------------------------ NicReady -- |
//!     its rings stop                                   |
//!        | -- NicState ------------------------------> |  imported
//!        | <------------------------------ NicTaken -- |
//!        | -- NicFrames: what reaches the source ----> |  kept, to be first
//!        |                                             |  its rings run: announced
//!        | <-------------------------- NicActivated -- |  what comes here waits
//!     what was kept is told, and no more kept          |
//!        | -- NicFrames, NicFence -------------------> |  what came here is given
//!        | <------------------------------ NicTaken -- |  until then the source has them too
//!        | -- NicFrames: stragglers -----------------> |
//!        | -- NicDone -------------------------------> |
//! ```
//!
//! A NIC has no owner and no record: its frames go where its guest's rings run, and a VMM runs a guest at
//! one host only. If the guest goes on at the source, it has what was kept for it there and the
//! destination forgets it ([`crate::codec::Message::NicResumed`]). A VMM that carries device state brings
//! the state besides, with the frames that were in hand then; each frame is counted, and is given
//! once. When the link is lost, the source keeps frames and connects again; what it kept is told anew, late if
//! the guest runs there by then. So is what was on its way when the guest began there, for a while.

mod destination;
mod source;

pub use destination::receive;
pub use source::{NicHandle, NicParams, NicPhase, NicStatus, start};

/// Bytes of frames in one message, each with what is said of it.
const BATCH_BYTES: usize = 48 * 1024;
/// What is said of one, at most.
const FRAME_META_BYTES: usize = 64;
