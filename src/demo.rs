//! `ferry demo`.
use crate::error::{Done, Failure};
use clap::Args;
/// `ferry demo`.
#[derive(Args)]
pub struct DemoArguments {}
pub fn run(_: &DemoArguments) -> Done {
    Err(Failure::Failed("not yet".into()))
}
