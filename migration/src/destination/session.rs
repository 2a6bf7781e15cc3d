//! One mirror's receiving end, from `Hello` to the end of its connection.

mod copy;
mod grant;
mod place;
mod voice;

use std::cell::Cell;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_dataplane::buffer::AlignedBuf;

use super::{DestinationHost, PreparedTarget, TargetBytes, answer_hand_back};
use crate::codec::{
    Answer, DATA_BYTES_MAX, Frame, Message, Pull, Tag, cut, read_frame, refused, write_message,
};
use crate::ids::Claim;
use crate::negotiate::{Hello, Ready};
use crate::phase::Phase;
use crate::transport::{FRAME_PATIENCE, Paced};
pub(super) use place::{abort, clearing};
use place::{give_up, prepare};
pub(super) use voice::Voice;

/// Between two lines about why a disk is not granted.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Receives one disk.
pub(super) fn receive(mut stream: TcpStream, host: &Arc<dyn DestinationHost>, hello: &Hello) {
    let voice = match stream.try_clone() {
        Ok(copy) => Voice::new(copy),
        Err(error) => {
            tracing::warn!(claim = %hello.claim, %error, "an incoming disk is refused");
            return;
        }
    };
    let target = match prepare(host, hello, &voice) {
        Ok(target) => target,
        Err(no) => {
            tracing::warn!(claim = %hello.claim, reason = no.reason, "an incoming disk is refused");
            let _ = write_message(&mut stream, &Message::Refused(no));
            return;
        }
    };
    let answer = Answer {
        claim: hello.claim.clone(),
        daemon: target.ownership.daemon(),
    };
    let beating = {
        let (voice, answer, target) = (voice.clone(), answer.clone(), target.clone());
        std::thread::Builder::new()
            .name("ferry-mirror-beat".to_owned())
            .spawn(move || voice.beat(&answer, || pull(&target, &answer.claim)))
    };
    let mut session = Session {
        host,
        target: &target,
        hello,
        voice: &voice,
        answer,
        buffer: AlignedBuf::new(DATA_BYTES_MAX),
        granted: false,
        not_granted: None,
        aborted: false,
        failed: Cell::new(false),
    };
    let why = match &beating {
        Ok(_) => session.run(&stream),
        Err(error) => format!("cannot start a thread: {error}"),
    };
    if !session.granted {
        tracing::warn!(claim = %hello.claim, why, "an incoming disk is discarded");
        // A link that was lost is tried again, as a rule; an operator's word is not.
        let wanted = !session.aborted && !session.failed.get();
        give_up(host, &target, &hello.claim, wanted, &why);
        let _ = voice.say(&refused(why));
    }
    voice.end();
    let _ = stream.shutdown(Shutdown::Both);
    if let Ok(beating) = beating {
        let _ = beating.join();
    }
}

/// What to ask the source for when a VM has arrived before the grant: its rings were started, and
/// wait. Asked again every second, for the source may be busy copying or not be convinced yet.
fn pull(target: &PreparedTarget, claim: &Claim) -> Option<Message> {
    let waits = matches!(target.ownership.phase(),
        Phase::Incoming { migration, .. } if migration == claim.migration);
    let rings = target.disk.rings();
    (waits && rings.iter().any(|ring| ring.running)).then(|| {
        Message::Pull(Pull {
            claim: claim.clone(),
            bases: rings.iter().map(|ring| ring.next_avail).collect(),
        })
    })
}

struct Session<'a> {
    host: &'a Arc<dyn DestinationHost>,
    target: &'a PreparedTarget,
    hello: &'a Hello,
    voice: &'a Arc<Voice>,
    answer: Answer,
    buffer: AlignedBuf,
    granted: bool,
    /// Why the source did not grant the disk when that was last said here, and when.
    not_granted: Option<(String, Instant)>,
    /// By the source, which has given the attempt up.
    aborted: bool,
    /// The disk here has failed.
    failed: Cell<bool>,
}

impl Session<'_> {
    /// Applies frames in their order until the connection ends, and says why it did.
    fn run(&mut self, stream: &TcpStream) -> String {
        let ready = Message::Ready(Ready {
            daemon: self.answer.daemon,
            kept: matches!(self.target.bytes, TargetBytes::Copy { kept: true, .. }),
        });
        if let Err(error) = self.voice.say(&ready) {
            return error.to_string();
        }
        let mut paced = Paced::new(std::io::BufReader::with_capacity(64 * 1024, stream));
        loop {
            paced.begin_frame(FRAME_PATIENCE);
            let frame = match read_frame(&mut paced) {
                Ok(frame) => frame,
                Err(error) => return error.to_string(),
            };
            match self.hear(frame, &mut paced) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(why)) | Err(why) => return why,
            }
        }
    }

    fn hear(&mut self, frame: Frame, from: &mut impl Read) -> Result<ControlFlow<String>, String> {
        match frame.message {
            Message::Ping => {}
            Message::NotGranted(no) => self.not_granted(cut(no.reason)),
            Message::Data(data) => self.data(&data, frame.data_bytes, from)?,
            Message::Zero(zero) => self.zero(&zero)?,
            Message::Digest(digest) => self.digest(&digest)?,
            Message::Flush(tag) => {
                self.receiving()?;
                self.flush()?;
                self.acknowledge(Tag::Flush(tag))?;
            }
            Message::Grant(grant) => return self.grant(grant),
            Message::HandBack(ask) => {
                let answer = answer_hand_back(self.host, &ask);
                self.voice.say(&answer).map_err(|error| error.to_string())?;
            }
            Message::Abort(abort) if abort.claim == self.hello.claim => {
                self.aborted = true;
                return Ok(ControlFlow::Break(
                    "the source aborted the migration".into(),
                ));
            }
            _ => return Err("the source broke the protocol: a message out of place".into()),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// It is asked every second, and a reason may have a number in it that counts.
    fn not_granted(&mut self, reason: String) {
        let said = self.not_granted.as_ref();
        if said.is_none_or(|(why, at)| *why != reason && at.elapsed() >= SAY_AGAIN) {
            tracing::warn!(claim = %self.hello.claim, reason,
                "rings were started here, and the source does not grant the disk: they wait");
            self.not_granted = Some((reason, Instant::now()));
        }
    }

    /// Refuses bytes for a copy that is not being received any more: a hand-back may have voided
    /// it on another connection, and after the grant it is the disk.
    fn receiving(&self) -> Result<(), String> {
        match self.target.ownership.phase() {
            Phase::Incoming { migration, .. } if migration == self.hello.claim.migration => Ok(()),
            phase => Err(format!(
                "the disk is {} here and takes no copy",
                phase.name()
            )),
        }
    }

    fn acknowledge(&self, tag: Tag) -> Result<(), String> {
        self.voice
            .say(&Message::Ack(tag))
            .map_err(|error| error.to_string())
    }
}
