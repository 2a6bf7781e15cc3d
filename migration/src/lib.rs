//! How a disk changes hosts while its guest writes to it.
//!
//! ```text
//!      source                                            destination
//!        | -- Hello: disk, epoch n+1, device shape ---------> |  makes a fresh image
//!        |                                                    |  `incoming` durable
//!        | <------------------------------- Ready ----------- |
//!        | -- Data, Zero (bulk, one cursor) ----------------> |  verified, applied in order
//!        | -- Data, Zero (the guest's own writes) ----------> |
//!        | <------------------------------- Ack ------------- |  the guest's write completes
//!        |    ... in sync: both have every byte ...           |
//!     rings stop, release is asked                            |
//!        | -- Flush ----------------------------------------> |  fdatasync
//!        | <------------------------------- Ack ------------- |
//!     `released` durable                                      |
//!        | -- Grant: device state --------------------------> |  checked, `granted` durable
//!        | <------------------------------- Granted --------- |
//!        |                                                    |  first descriptor:
//!        |                                                    |  `activated` durable, serve
//!        | <------------------------------- Activated ------- |
//! ```
//!
//! Before `released` any failure leaves the source serving and the guest unaware. Between
//! `released` and `Granted` neither serves until they can talk. After `Granted` and before
//! `activated` the source can have the disk back ([`codec::HandBack`]); after it, never.
//!
//! - [`phase`] is the table of who owns a disk, [`lease`] its durable record, [`handover`] the order
//!   in which each side records, speaks and serves.
//! - [`source`] and [`destination`] are the two ends of a move.
//! - [`nic`] moves a NIC.
//! - [`envelope`] and [`schema`] carry a device's state.
//! - [`codec`], [`negotiate`] and [`transport`] carry the words.

pub mod codec;
pub mod destination;
pub mod envelope;
pub mod extents;
pub mod handover;
pub mod ids;
pub mod lease;
pub mod negotiate;
pub mod nic;
pub mod phase;
pub mod qmp;
pub mod report;
pub mod schema;
pub mod source;
mod sync;
pub mod transport;
