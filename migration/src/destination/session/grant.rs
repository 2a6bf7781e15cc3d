//! The disk changes hands: the steps of a grant.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Session;
use super::place::{clearing, give_up};
use crate::codec::{Grant, Message};
use crate::destination::{TargetBytes, arm, say};
use crate::handover::{self, Datastore, Step};
use crate::ids::Claim;
use crate::lease::shared::{ClaimError, SharedDisk};
use crate::phase::{Event, Phase};
use crate::schema::BlkState;

impl Session<'_> {
    /// The disk changes hands. Each step is durable before the next; see the head of `destination`.
    pub(super) fn grant(&mut self, grant: Grant) -> Result<ControlFlow<String>, String> {
        if grant.claim != self.hello.claim {
            return Err("the source broke the protocol: it grants another disk".into());
        }
        // From here on a look at the device may wait for its disk.
        self.voice.receiving.store(false, Ordering::Release);
        let outcome = match self.target.ownership.phase() {
            Phase::Incoming { .. } => self.take(grant.device_state),
            // A repetition, or one that lost against a hand-back: the record has the answer.
            _ => Ok(()),
        };
        if let Err(why) = &outcome {
            let wanted = !self.failed.get();
            give_up(self.host, self.target, &self.hello.claim, wanted, why);
        }
        let reason = outcome
            .err()
            .unwrap_or_else(|| "it was handed back before".into());
        // Not durably anything: no answer is true, the source has to ask again.
        let message = say(&self.target.ownership, &self.hello.claim, reason)
            .ok_or("the outcome of the grant cannot be recorded")?;
        self.granted = matches!(message, Message::Granted(_) | Message::Activated(_));
        self.voice
            .say(&message)
            .map_err(|error| error.to_string())?;
        if self.granted {
            Ok(ControlFlow::Continue(()))
        } else {
            Ok(ControlFlow::Break("the grant was not taken".into()))
        }
    }

    fn take(&mut self, device_state: Vec<u8>) -> Result<(), String> {
        let claim = &self.hello.claim;
        let device_state = Some(device_state);
        let (datastore, shared) = match &self.target.bytes {
            TargetBytes::Copy { .. } => (Datastore::Own, None),
            TargetBytes::Shared(image) => (Datastore::Shared, Some(image)),
        };
        let _alone = shared.map(|image| image.alone());
        if shared.is_some() {
            self.receiving()?;
        }
        let taken = self.take_steps(claim, device_state, datastore, shared);
        let phase = self.target.ownership.phase();
        let is_ours = matches!(
            phase,
            Phase::Incoming { .. } | Phase::Granted { .. } | Phase::Serving { .. }
        );
        // Handed back or taken over while it was opened: whoever did that found nothing to close.
        if let (Err(_), Some(image), false) = (&taken, shared, is_ours)
            && let Err(why) = image.let_go()
        {
            tracing::error!(claim = %claim, why, "the image is kept open");
        }
        taken
    }

    fn take_steps(
        &self,
        claim: &Claim,
        mut device_state: Option<Vec<u8>>,
        datastore: Datastore,
        shared: Option<&Arc<dyn SharedDisk>>,
    ) -> Result<(), String> {
        for step in handover::on_grant(claim.migration, claim.epoch, datastore) {
            match (step, shared) {
                (Step::Flush, _) => self.flush()?,
                (Step::Take, Some(image)) => image.take()?,
                (Step::Claim { epoch, through, .. }, Some(image)) => {
                    image
                        .claim(epoch, through, None)
                        .map_err(|error| self.lost(&error))?;
                }
                (Step::Record(_), _) => {
                    if let Some(device_state) = device_state.take() {
                        self.install_and_record(device_state)?;
                    }
                }
                // `grant` says what came of it.
                _ => {}
            }
        }
        Ok(())
    }

    /// A shared disk is another's before its grant was taken.
    fn lost(&self, error: &ClaimError) -> String {
        if let ClaimError::Taken { epoch, .. } = error {
            let epoch = *epoch;
            // Whatever the record says: it is not granted, and a late word about it is refused.
            if let Err(error) = self.target.ownership.apply(Event::TakenOver { epoch }) {
                tracing::warn!(claim = %self.hello.claim, %error, "a takeover is not recorded");
            }
            self.host
                .discard(&self.hello.claim, false, "another host took it over");
        }
        error.to_string()
    }

    fn install_and_record(&self, device_state: Vec<u8>) -> Result<(), String> {
        let claim = &self.hello.claim;
        let state = BlkState::decode(&device_state).map_err(|error| error.to_string())?;
        if crate::schema::geometry(&state.blk) != crate::schema::geometry(&self.hello.shape) {
            return Err("the device's shape changed since the migration began".into());
        }
        self.host.install(claim, &device_state)?;
        self.target
            .ownership
            .grant(claim.migration, claim.epoch, device_state)
            .map_err(|error| error.to_string())?;
        // The rings may start the moment this returns; the hook finds `granted`.
        let armed = arm(self.target, self.host, claim, Some(self.voice.clone()));
        armed.map_err(|error| {
            // Granted, but it cannot serve: the same as a hand-back.
            let (migration, epoch) = (claim.migration, claim.epoch);
            clearing(|| {
                match self
                    .target
                    .ownership
                    .apply(Event::HandBack { migration, epoch })
                {
                    Ok(_) => self.host.discard(claim, true, "the device cannot take it"),
                    Err(error) => {
                        tracing::error!(%claim, %error, "a failed grant is not taken back");
                    }
                }
            });
            error.to_string()
        })
    }
}
