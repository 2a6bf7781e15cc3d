//! The socket of a device: one front-end at a time, for as many times as they come.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::back_channel::channel_ahead;
use crate::early::enable_ahead;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError, VhostUserBackendReqHandler};

/// A device that can be driven over a socket.
pub trait Conversation: Send + Sync + 'static {
    /// Answers the messages of one connection.
    type Handler: VhostUserBackendReqHandler;

    /// A front-end has connected.
    fn open(self: &Arc<Self>) -> Arc<Self::Handler>;

    /// It is gone: stop its rings and forget what it negotiated.
    fn close(&self);

    /// The front-end listens here to what the device has to say.
    fn channel(&self, channel: OwnedFd);

    /// The device's name, for messages.
    fn name(&self) -> &str;
}

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Someone listens there.
    #[error("{0} is in use: another process listens on it; stop it, or choose another path")]
    InUse(PathBuf),
    /// Something that is not a socket is there.
    #[error("{0} exists and is not a socket; remove it, or choose another path")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// How long a process that was killed may take to be gone.
const DYING: std::time::Duration = std::time::Duration::from_millis(500);

struct Shared {
    stopping: AtomicBool,
    /// The connection under way, to be cut at the end.
    current: Mutex<Option<UnixStream>>,
}

/// A listening device. Dropping it cuts the connection, stops the rings and removes the socket.
pub struct Listening {
    path: PathBuf,
    /// The listening socket once more: shutting it down ends the accept, even when the path is gone.
    wake: UnixStream,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Serves `device` on a socket at `path`, on a thread of its own. `mode` is the socket's
/// permissions.
pub fn listen<D: Conversation>(
    device: Arc<D>,
    path: &Path,
    mode: u32,
) -> Result<Listening, ListenError> {
    let failed = |source| ListenError::Io {
        path: path.to_owned(),
        source,
    };
    clear(path)?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(failed)?;
    let wake = UnixStream::from(OwnedFd::from(listener.try_clone().map_err(failed)?));
    let shared = Arc::new(Shared {
        stopping: AtomicBool::new(false),
        current: Mutex::new(None),
    });
    let (inner, name) = (shared.clone(), format!("ferry-{}", device.name()));
    let thread = std::thread::Builder::new()
        .name(name.chars().take(15).collect())
        .spawn(move || accept(&listener, &device, &inner))
        .map_err(failed)?;
    Ok(Listening {
        path: path.to_owned(),
        wake,
        shared,
        thread: Some(thread),
    })
}

/// Whether somebody listens there, and goes on listening: a process that was killed listens until the
/// kernel has come to closing its descriptors.
fn is_listened_to(path: &Path) -> bool {
    let began = std::time::Instant::now();
    while UnixStream::connect(path).is_ok() {
        if began.elapsed() > DYING {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    false
}

/// Removes a socket that nobody listens on.
fn clear(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |source| ListenError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(there) if !there.file_type().is_socket() => Err(ListenError::NotASocket(path.into())),
        Ok(_) if is_listened_to(path) => Err(ListenError::InUse(path.into())),
        Ok(_) => std::fs::remove_file(path).map_err(failed),
    }
}

fn accept<D: Conversation>(listener: &UnixListener, device: &Arc<D>, shared: &Shared) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if shared.stopping.load(Ordering::Acquire) => return,
            Err(error) => {
                tracing::error!(device = device.name(), %error, "cannot accept a front-end");
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
        };
        let cut = stream.try_clone();
        {
            let mut current = shared
                .current
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if shared.stopping.load(Ordering::Acquire) {
                return;
            }
            *current = cut.ok();
        }
        serve(stream, device);
        *shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn serve<D: Conversation>(stream: UnixStream, device: &Arc<D>) {
    tracing::info!(device = device.name(), "front-end connected");
    let ahead = stream.try_clone().ok();
    let handler = device.open();
    let mut requests = BackendReqHandler::from_stream(stream, handler.clone());
    loop {
        if let Some(ahead) = &ahead
            && enable_ahead(ahead, &*handler)
        {
            continue;
        }
        if let Some(channel) = ahead.as_ref().and_then(channel_ahead) {
            device.channel(channel);
        }
        match requests.handle_request() {
            Ok(()) => {}
            // The message was answered, or needs no answer: the conversation goes on.
            Err(VhostError::ReqHandlerError(error)) => {
                tracing::warn!(device = device.name(), %error, "a vhost-user message failed");
            }
            Err(
                VhostError::Disconnected | VhostError::PartialMessage | VhostError::SocketBroken(_),
            ) => {
                tracing::info!(device = device.name(), "front-end disconnected");
                break;
            }
            Err(error) => {
                tracing::warn!(device = device.name(), %error, "the front-end broke the protocol; disconnected");
                break;
            }
        }
    }
    device.close();
}

impl Drop for Listening {
    fn drop(&mut self) {
        {
            let current = self
                .shared
                .current
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.shared.stopping.store(true, Ordering::Release);
            if let Some(stream) = &*current {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let _ = self.wake.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}
