//! The daemon by its commands: what it keeps, what it refuses, and what it makes of each record
//! when it is killed and started again. No guest but a small front-end in this process.
//!
//! ```text
//!   cargo test --test daemon            all of them
//!   cargo test --test daemon killed     some
//! ```

#[path = "daemon/adding.rs"]
mod adding;
#[path = "daemon/churn.rs"]
mod churn;
#[path = "daemon/congestion.rs"]
mod congestion;
#[path = "daemon/crashes.rs"]
mod crashes;
#[path = "daemon/escalation.rs"]
mod escalation;
#[path = "daemon/faults.rs"]
mod faults;
#[path = "daemon/hook.rs"]
mod hook;
#[path = "daemon/killed.rs"]
mod killed;
#[path = "daemon/moves.rs"]
mod moves;
#[path = "daemon/nic_moves.rs"]
mod nic_moves;
#[path = "daemon/nics.rs"]
mod nics;
#[path = "daemon/pull.rs"]
mod pull;
#[path = "daemon/resume.rs"]
mod resume;
#[path = "daemon/rig.rs"]
mod rig;
#[path = "daemon/shared.rs"]
mod shared;
#[path = "daemon/sioc.rs"]
mod sioc;
#[path = "daemon/thin.rs"]
mod thin;
#[path = "daemon/together.rs"]
mod together;
#[path = "daemon/workers.rs"]
mod workers;
