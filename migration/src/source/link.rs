//! The mirror's connection: one thread writes, one reads.
//!
//! Everything that changes the disk goes through one ordered queue, the tap's. The copier puts its
//! pieces into it as events with sequence number 0, which a tap never uses, so the order in the
//! queue is the order on the wire and the order at the destination.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use ferry_dataplane::lifecycle::TapEvent;

use super::shared::{Shared, Verdict};
use crate::codec::{
    self, CodecError, DATA_BYTES_MAX, Data, Digest, Message, Tag, Zero, data_crcs, encode,
    read_frame,
};
use crate::ids::{Claim, DaemonId};
use crate::transport::{FRAME_PATIENCE, HEARTBEAT, Paced};

/// Changes that may wait to be written.
const QUEUE_MAX: usize = 4096;
/// What an orderly goodbye may take before the socket is closed under the writer.
const GOODBYE: Duration = Duration::from_millis(300);

/// Words that are not part of the ordered queue.
pub(super) enum Control {
    /// After everything queued so far.
    Flush(u64),
    /// As it is.
    Say(Box<Message>),
    /// Answers how many changes were written since the last flush, when the queue is empty.
    Barrier(Sender<u64>),
}

pub(super) struct Link {
    shared: Arc<Shared>,
    stream: TcpStream,
    pub events: Sender<TapEvent>,
    control: Option<Sender<Control>>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Takes over a stream on which `Ready` was just read from `daemon`.
    pub fn start(
        shared: &Arc<Shared>,
        stream: TcpStream,
        claim: Claim,
        daemon: DaemonId,
    ) -> io::Result<Link> {
        let (events, queue) = bounded(QUEUE_MAX);
        let (control, orders) = bounded(16);
        let mut writer = Writer {
            shared: shared.clone(),
            stream: stream.try_clone()?,
            queue,
            orders,
            bulk_tag: 0,
            since_flush: 0,
        };
        let mut reader = Reader {
            shared: shared.clone(),
            stream: Paced::new(stream.try_clone()?),
            claim,
            daemon,
        };
        let mut link = Link {
            shared: shared.clone(),
            stream,
            events,
            control: Some(control),
            threads: vec![],
        };
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        link.threads
            .push(spawn("ferry-mirror-tx").spawn(move || writer.run())?);
        link.threads
            .push(spawn("ferry-mirror-rx").spawn(move || reader.run())?);
        Ok(link)
    }

    /// Hands a word to the writer; a dead writer shows in `Live::lost`.
    pub fn order(&self, order: Control) {
        if let Some(control) = &self.control {
            let _ = control.send_timeout(order, FRAME_PATIENCE);
        }
    }

    /// How many changes were written since the last flush; `None` when the writer has ended.
    pub fn barrier(&self) -> Option<u64> {
        let (reply, answer) = bounded(1);
        self.order(Control::Barrier(reply));
        answer.recv_timeout(FRAME_PATIENCE).ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The writer ends when it has written what was ordered; if the network is stuck, the
        // shutdown frees it.
        self.control = None;
        let goodbye = Some(Instant::now() + GOODBYE);
        self.shared
            .wait(goodbye, |live| live.writer_done.then_some(()));
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    stream: TcpStream,
    queue: Receiver<TapEvent>,
    orders: Receiver<Control>,
    bulk_tag: u64,
    since_flush: u64,
}

impl Writer {
    fn run(&mut self) {
        if let Err(error) = self.write_all() {
            self.shared
                .lose(format!("the link to the destination is lost: {error}"));
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        self.shared.tell(|live| live.writer_done = true);
    }

    fn write_all(&mut self) -> Result<(), CodecError> {
        // The link itself holds a sender of the queue, so it is not disconnected before `orders`.
        loop {
            select! {
                recv(self.queue) -> event => match event {
                    Ok(event) => self.change(event)?,
                    Err(_) => return Ok(()),
                },
                recv(self.orders) -> order => match order {
                    Ok(order) => self.obey(order)?,
                    Err(_) => return Ok(()),
                },
                default(HEARTBEAT) => self.frame(&Message::Ping, &[])?,
            }
        }
    }

    fn obey(&mut self, order: Control) -> Result<(), CodecError> {
        if !matches!(order, Control::Say(_)) {
            while let Ok(event) = self.queue.try_recv() {
                self.change(event)?;
            }
        }
        match order {
            Control::Flush(tag) => {
                self.since_flush = 0;
                self.frame(&Message::Flush(tag), &[])
            }
            Control::Say(message) => self.frame(&message, &[]),
            Control::Barrier(reply) => {
                let _ = reply.send(self.since_flush);
                Ok(())
            }
        }
    }

    fn change(&mut self, event: TapEvent) -> Result<(), CodecError> {
        self.since_flush += 1;
        match event {
            TapEvent::Write {
                seq,
                offset_bytes,
                data,
                len,
            } => {
                let tag = self.tag(seq);
                let by_digest = self.shared.by_digest.load(Ordering::Acquire);
                if by_digest && matches!(tag, Tag::Bulk(_)) && len <= DATA_BYTES_MAX {
                    return self.digest(tag, offset_bytes, &data[..len]);
                }
                self.data(tag, offset_bytes, &data[..len])
            }
            TapEvent::Zero {
                seq,
                offset_bytes,
                len_bytes,
            } => {
                let tag = self.tag(seq);
                self.frame(
                    &Message::Zero(Zero {
                        tag,
                        offset_bytes,
                        len_bytes,
                    }),
                    &[],
                )
            }
            TapEvent::Dirty {
                offset_bytes,
                len_bytes,
            } => {
                self.shared.plan().mark_dirty(offset_bytes, len_bytes);
                // Through the lock, so that a waiter cannot miss it.
                self.shared.tell(|_| ());
                Ok(())
            }
            TapEvent::Failed(why) => {
                self.shared
                    .lose(format!("the disk gave the mirror up: {why}"));
                Ok(())
            }
        }
    }

    fn tag(&mut self, seq: u64) -> Tag {
        if seq == 0 {
            self.bulk_tag += 1;
            return Tag::Bulk(self.bulk_tag);
        }
        self.shared.guest_sent.fetch_max(seq, Ordering::AcqRel);
        Tag::Guest(seq)
    }

    fn digest(&mut self, tag: Tag, offset_bytes: u64, data: &[u8]) -> Result<(), CodecError> {
        let digest = Digest {
            tag,
            offset_bytes,
            len_bytes: data.len() as u64,
            hash: codec::digest(data),
        };
        self.frame(&Message::Digest(digest), &[])
    }

    /// A write larger than a frame goes in pieces. All but the last carry the tag before, whose
    /// acknowledgement is true by then and completes nothing that it should not.
    fn data(&mut self, tag: Tag, offset_bytes: u64, data: &[u8]) -> Result<(), CodecError> {
        let mut at = offset_bytes;
        let pieces = data.len().div_ceil(DATA_BYTES_MAX);
        for (count, piece) in data.chunks(DATA_BYTES_MAX).enumerate() {
            let tag = match tag {
                Tag::Guest(seq) if count + 1 < pieces => Tag::Guest(seq - 1),
                other => other,
            };
            let head = Data {
                tag,
                offset_bytes: at,
                crcs: data_crcs(piece),
            };
            self.frame(&Message::Data(head), piece)?;
            self.shared.sent(piece.len());
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn frame(&mut self, message: &Message, data: &[u8]) -> Result<(), CodecError> {
        let mut head = encode(message, data.len())?;
        // One segment for a small write: it is what a guest waits for.
        if data.len() <= 16 * 1024 {
            head.extend_from_slice(data);
            self.stream.write_all(&head)?;
        } else {
            self.stream.write_all(&head)?;
            self.stream.write_all(data)?;
        }
        Ok(())
    }
}

struct Reader {
    shared: Arc<Shared>,
    stream: Paced<TcpStream>,
    claim: Claim,
    daemon: DaemonId,
}

impl Reader {
    fn run(&mut self) {
        loop {
            self.stream.begin_frame(FRAME_PATIENCE);
            let said = read_frame(&mut self.stream)
                .map_err(|error| format!("the link to the destination is lost: {error}"));
            if let Err(why) = said.and_then(|frame| self.hear(frame.message)) {
                self.shared.lose(why);
                return;
            }
        }
    }

    fn hear(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::Ping => Ok(()),
            Message::Ack(tag) => self.acknowledged(tag),
            Message::Differs(differs) => {
                if !matches!(differs.tag, Tag::Bulk(_)) {
                    return Err(
                        "the destination broke the protocol: what it says of a write".into(),
                    );
                }
                // Before it counts as applied, so that nobody takes the copy for equal.
                let mut plan = self.shared.plan();
                plan.mark_dirty(differs.offset_bytes, differs.len_bytes);
                drop(plan);
                self.acknowledged(differs.tag)
            }
            Message::Pull(pull) if pull.claim == self.claim => {
                let heard = Instant::now();
                self.shared
                    .tell(|live| live.pull = Some((pull.bases, heard)));
                Ok(())
            }
            Message::Refused(refused) => Err(format!("the destination says: {}", refused.reason)),
            Message::Granted(answer) => {
                self.verdict(&answer.claim, answer.daemon, Verdict::Granted)
            }
            Message::Activated(answer) => {
                self.verdict(&answer.claim, answer.daemon, Verdict::Activated)
            }
            Message::Returned(answer) => self.verdict(
                &answer.claim,
                answer.daemon,
                Verdict::Returned(answer.reason),
            ),
            _ => {
                Err("the destination broke the protocol: a message that is not its to send".into())
            }
        }
    }

    fn verdict(&self, claim: &Claim, daemon: DaemonId, verdict: Verdict) -> Result<(), String> {
        if *claim != self.claim || daemon != self.daemon {
            return Err("the destination broke the protocol: it answers for another disk".into());
        }
        self.shared.tell(|live| {
            // The notice of an activation may overtake the answer to the grant.
            if live.verdict != Some(Verdict::Activated) {
                live.verdict = Some(verdict);
            }
        });
        Ok(())
    }

    fn acknowledged(&self, tag: Tag) -> Result<(), String> {
        let wrong = || Err("the destination acknowledged what was never sent".to_owned());
        match tag {
            Tag::Guest(0) => Ok(()),
            Tag::Guest(seq) if seq <= self.shared.guest_sent.load(Ordering::Acquire) => {
                self.shared.acknowledge(seq);
                Ok(())
            }
            Tag::Guest(_) => wrong(),
            Tag::Bulk(number) => {
                let mut fits = false;
                self.shared.tell(|live| {
                    fits = number == live.bulk_acked + 1 && !live.bulk.is_empty();
                    if fits {
                        live.bulk_acked = number;
                        live.bulk_bytes -= live.bulk.pop_front().unwrap_or(0);
                    }
                });
                if fits { Ok(()) } else { wrong() }
            }
            Tag::Flush(number) => {
                self.shared
                    .tell(|live| live.flushed = live.flushed.max(number));
                Ok(())
            }
        }
    }
}
