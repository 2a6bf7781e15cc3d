//! The receiving end of one conversation about a NIC.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ferry_dataplane::net::lifecycle::NicLifecycle;

use crate::codec::{CodecError, Message, NicFrames, NicHello, encode, read_frame, refused};
use crate::destination::DestinationHost;
use crate::schema::net::{NetState, check_frame, port_frame};
use crate::transport::{FRAME_PATIENCE, HEARTBEAT, Paced};

/// Receives one NIC.
pub fn receive(mut stream: TcpStream, host: &Arc<dyn DestinationHost>, hello: &NicHello) {
    let refuse = |stream: &mut TcpStream, why: String| {
        tracing::warn!(nic = %hello.nic, why, "an incoming NIC is refused");
        let _ = say(stream, &refused(why));
    };
    let (nic, origin) = match consent(host, hello) {
        Ok(consent) => consent,
        Err(why) => return refuse(&mut stream, why),
    };
    let (words, orders) = bounded(16);
    let session = Session {
        nic: Arc::downgrade(&nic),
        origin,
        moving: hello.migration.0.as_u128(),
        arrival: AtomicU64::new(0),
        words,
        activated: Arc::default(),
    };
    let arrived = nic.has_arrived(session.moving);
    match arrived {
        Some(arrival) => session.arrival.store(arrival, Ordering::Relaxed),
        None => {
            if let Err(why) = session.await_guest() {
                return refuse(&mut stream, why);
            }
        }
    }
    drop(nic);
    let voice = stream.try_clone().and_then(|stream| {
        thread::Builder::new()
            .name("ferry-nic-tx".into())
            .spawn(move || speak(stream, &orders))
    });
    tracing::info!(nic = %hello.nic, migration = %hello.migration, "a NIC is awaited");
    session.say(Message::NicReady);
    if arrived.is_some() {
        session.activated.store(true, Ordering::Release);
        session.say(Message::NicActivated);
    }
    let ended = match &voice {
        Ok(_) => session.run(&stream),
        Err(error) => Err(Ended::Lost(format!("cannot start a thread: {error}"))),
    };
    session.end(ended, hello);
    drop(session);
    // After what was said last.
    if let Ok(voice) = voice {
        let _ = voice.join();
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// The device that the NIC arrives at, and whose frames it will be sent.
fn consent(
    host: &Arc<dyn DestinationHost>,
    hello: &NicHello,
) -> Result<(Arc<dyn NicLifecycle>, u64), String> {
    let nic = host.nic(hello)?;
    nic.check(&hello.shape).map_err(|error| error.to_string())?;
    let shape = NetState::decode(&hello.shape).map_err(|error| error.to_string())?;
    Ok((nic, shape.net.origin))
}

/// Says what it is given, in its order, and something once in a while.
fn speak(mut stream: TcpStream, orders: &Receiver<Message>) {
    loop {
        let message = match orders.recv_timeout(HEARTBEAT) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => Message::Ping,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if say(&mut stream, &message).is_err() {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn say(stream: &mut TcpStream, message: &Message) -> Result<(), CodecError> {
    stream.write_all(&encode(message, 0)?)?;
    Ok(())
}

/// How a conversation ended.
enum Ended {
    /// By the source's word.
    Done,
    /// What it sent cannot be taken.
    Refused(String),
    /// By itself.
    Lost(String),
}

struct Session {
    /// One that is removed here is not held by who speaks of it.
    nic: Weak<dyn NicLifecycle>,
    origin: u64,
    /// The move's number, and the arrival's.
    moving: u128,
    arrival: AtomicU64,
    words: Sender<Message>,
    activated: Arc<AtomicBool>,
}

impl Session {
    fn say(&self, message: Message) {
        // Few are said; a source that does not listen is lost.
        let _ = self.words.try_send(message);
    }

    fn nic(&self) -> Result<Arc<dyn NicLifecycle>, String> {
        let nic = self.nic.upgrade();
        nic.ok_or_else(|| "the NIC was removed there".into())
    }

    fn await_guest(&self) -> Result<(), String> {
        let (words, activated) = (self.words.clone(), self.activated.clone());
        let hook = move || {
            activated.store(true, Ordering::Release);
            let _ = words.try_send(Message::NicActivated);
        };
        let arrival = self.nic()?.arrive(self.moving, Box::new(hook));
        let arrival = arrival.map_err(|error| error.to_string())?;
        self.arrival.store(arrival, Ordering::Relaxed);
        Ok(())
    }

    fn arrival(&self) -> u64 {
        self.arrival.load(Ordering::Relaxed)
    }

    fn run(&self, stream: &TcpStream) -> Result<(), Ended> {
        let mut paced = Paced::new(std::io::BufReader::with_capacity(64 * 1024, stream));
        loop {
            paced.begin_frame(FRAME_PATIENCE);
            let frame = read_frame(&mut paced).map_err(|error| Ended::Lost(error.to_string()))?;
            self.hear(frame.message)?;
        }
    }

    fn hear(&self, message: Message) -> Result<(), Ended> {
        let no = |error: &dyn std::fmt::Display| Ended::Refused(error.to_string());
        let nic = self.nic().map_err(Ended::Refused)?;
        match message {
            Message::Ping => {}
            Message::NicState(state) => {
                // The VMM may have brought it, and begun.
                if !self.activated.load(Ordering::Acquire) {
                    let imported = nic.import(self.arrival(), &state.device_state);
                    imported.map_err(|error| no(&error))?;
                }
                self.say(Message::NicTaken);
            }
            Message::NicFrames(NicFrames { frames }) => {
                for frame in &frames {
                    check_frame(frame).map_err(|error| no(&error))?;
                }
                let frames = frames.into_iter().map(port_frame).collect();
                let delivered = nic.deliver(self.arrival(), self.origin, frames);
                delivered.map_err(|error| no(&error))?;
            }
            Message::NicFence => {
                nic.settle(self.arrival());
                // What was before it is here.
                self.say(Message::NicTaken);
            }
            Message::NicResumed => {
                nic.void(self.arrival());
                self.await_guest().map_err(Ended::Refused)?;
            }
            Message::NicDone => return Err(Ended::Done),
            _ => {
                return Err(Ended::Refused(
                    "the source broke the protocol: a message out of place".into(),
                ));
            }
        }
        Ok(())
    }

    fn end(&self, ended: Result<(), Ended>, hello: &NicHello) {
        let Ok(nic) = self.nic() else {
            tracing::info!(nic = %hello.nic, "a NIC that was awaited is removed");
            if let Err(Ended::Refused(why)) = ended {
                self.say(refused(why));
            }
            return;
        };
        let activated = self.activated.load(Ordering::Acquire);
        match ended {
            Err(Ended::Done) if !activated => {
                tracing::info!(nic = %hello.nic, "no more is said of a NIC that has not come");
                nic.dismiss(self.arrival());
            }
            Err(Ended::Refused(why)) => {
                tracing::warn!(nic = %hello.nic, why, "an incoming NIC is refused");
                if activated {
                    nic.settle(self.arrival());
                } else {
                    nic.dismiss(self.arrival());
                }
                self.say(refused(why));
            }
            Err(Ended::Lost(why)) if !activated => {
                // Its VMM may go on all the same, and the source may connect again.
                tracing::warn!(nic = %hello.nic, why, "the link to a NIC's source is lost");
                nic.settle(self.arrival());
            }
            _ => nic.settle(self.arrival()),
        }
    }
}
